"""Who sends a word outside an enumeration is told which words are in it, wherever it stands."""

from typing import Any, Literal

import pytest
from msgspec import Struct

from edge.services.choices import with_choices
from edge.services.submission import read_as
from schemas.access import Scope
from schemas.errors import Refused
from schemas.words import Priority, Status


class Inner(Struct, frozen=True, rename="camel"):
    how_much: Literal["all", "some"] = "all"


class Asked(Struct, frozen=True):
    priority: Priority = Priority.NORMAL
    scopes: tuple[Scope, ...] = ()
    inner: Inner | None = None
    several: list[Inner] = []


SCOPES = ", ".join(Scope)
WRONG: list[tuple[dict[str, Any], str, str]] = [
    # the body, the path, the choices
    ({"priority": "urgent"}, "$.priority", "high, normal, low"),
    ({"scopes": ["jobs:read", "all"]}, "$.scopes[1]", SCOPES),
    ({"inner": {"howMuch": "x"}}, "$.inner.howMuch", "all, some"),
    ({"several": [{}, {"howMuch": "x"}]}, "$.several[1].howMuch", "all, some"),
]


@pytest.mark.parametrize(("body", "path", "choices"), WRONG)
def test_the_choices_are_told(body: dict[str, Any], path: str, choices: str) -> None:
    with pytest.raises(Refused) as refused:
        read_as(body, Asked)
    (error,) = refused.value.errors
    assert error.path == path
    assert f": it is one of {choices}" in error.message


def test_what_names_no_choice_is_told_as_it_is() -> None:
    assert with_choices("Expected `int`, got `str`", Asked, "$.priority") == "Expected `int`, got `str`"
    assert with_choices("Invalid enum value 'x'", Asked, "$.nowhere.at[0]") == "Invalid enum value 'x'"
    assert with_choices("Invalid enum value 'x'", Status | None).endswith(", ".join(Status))
