"""Run the examples of docstrings as a person would type them, `await` included."""

import ast
import contextlib
import doctest
import inspect
import io
import sys
from collections.abc import Iterator
from typing import Any

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
CHECKER = doctest.OutputChecker()


def list_documented(*things: Any) -> Iterator[Any]:
    """Yield the things themselves and every public method of the classes among them, inherited ones too."""
    for thing in things:
        yield thing
        if inspect.isclass(thing):
            yield from (member for name, member in inspect.getmembers(thing, callable) if not name.startswith("_"))


def examples_of(thing: Any) -> list[doctest.Example]:
    """Return the examples in the docstring."""
    return doctest.DocTestParser().get_examples(inspect.getdoc(thing) or "")


async def run_example(example: doctest.Example, names: dict[str, Any]) -> None:
    """Run one example. Raises AssertionError when it prints something else than the docstring shows."""
    code = compile(example.source, "<example>", "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    told = io.StringIO()
    with contextlib.redirect_stdout(told), _displaying():
        coroutine = eval(code, names)
        if code.co_flags & inspect.CO_COROUTINE:
            await coroutine
    if not CHECKER.check_output(example.want, told.getvalue(), FLAGS):
        raise AssertionError(f"{example.source}{CHECKER.output_difference(example, told.getvalue(), FLAGS)}")


@contextlib.contextmanager
def _displaying() -> Iterator[None]:
    """Show values as Python's prompt does, whatever has replaced its display hook."""
    before, sys.displayhook = sys.displayhook, sys.__displayhook__
    try:
        yield
    finally:
        sys.displayhook = before
