"""Find the English sentences in the code, as templates: the text around the values."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# A text for people has two lower-case words in a row. Names, paths, SQL and formats do not.
PROSE = re.compile(r"(^|[ (`'\"«])[a-z][a-z']+,? [a-z][a-z']+")
FORMAT_FIELD = re.compile(r"\{[a-z_]+\}")
LOG_METHODS = {"debug", "info", "warning", "error", "exception", "log"}

Literals = tuple[str, ...]


class Sentence(NamedTuple):
    """A text in the code: the literals around its values, and where it stands."""

    literals: Literals
    place: str


def literals_of(node: ast.expr) -> Literals | None:
    """Return the literals of a string or f-string; neighbouring values count as one. None for another expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return tuple(FORMAT_FIELD.split(node.value))  # a template for `format`
    if not isinstance(node, ast.JoinedStr):
        return None
    literals, after_value = [""], False
    for part in node.values:
        if isinstance(part, ast.Constant):
            literals[-1] += part.value
            after_value = False
        elif not after_value:
            literals.append("")
            after_value = True
    return tuple(literals)


def find_sentences(path: Path, name: str) -> Iterator[Sentence]:
    """Yield the texts for people in a file. Docstrings, annotations and what is logged are not."""
    yield from _walk(ast.parse(path.read_text()), name)


def _walk(node: ast.AST, name: str) -> Iterator[Sentence]:
    if isinstance(node, ast.expr) and (literals := literals_of(node)) is not None:
        if PROSE.search("0".join(literals)):
            yield Sentence(literals, f"{name}:{node.lineno}")
        return
    for child in _read_children(node):
        yield from _walk(child, name)


def _read_children(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOG_METHODS:
        return
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            is_docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if isinstance(child, ast.AST) and not is_docstring:
                yield child
