"""Mutants that no test can kill, each with the reason. They are found by their text; one that matches nothing fails."""

from typing import NamedTuple


class Equivalent(NamedTuple):
    """A mutant of `path` inside `function`; `change` is as `just mutants` prints it."""

    path: str
    function: str
    change: str
    reason: str


EQUIVALENTS: tuple[Equivalent, ...] = ()
