"""A request with a value outside an enumeration gets an error that lists the allowed values, at any path."""

from typing import Any, Literal

import pytest
from msgspec import Struct

from edge.core.validation import decode_as, describe_allowed_values
from schemas.credentials import Scope
from schemas.job import Priority, Status
from schemas.problems import ProblemError


class Inner(Struct, frozen=True, rename="camel"):
    how_much: Literal["all", "some"] = "all"


class ChoiceBody(Struct, frozen=True):
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
def test_the_choices_are_listed(body: dict[str, Any], path: str, choices: str) -> None:
    with pytest.raises(ProblemError) as refused:
        decode_as(body, ChoiceBody)
    (error,) = refused.value.errors
    assert error.path == path
    assert f": it is one of {choices}" in error.message


def test_what_names_no_choice_is_reported_as_it_is() -> None:
    assert describe_allowed_values("Expected `int`, got `str`", ChoiceBody, "$.priority") == "Expected `int`, got `str`"
    assert describe_allowed_values("Invalid enum value 'x'", ChoiceBody, "$.nowhere.at[0]") == "Invalid enum value 'x'"
    assert describe_allowed_values("Invalid enum value 'x'", Status | None).endswith(", ".join(Status))
