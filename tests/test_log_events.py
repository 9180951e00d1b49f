"""Log lines follow one scheme: an `event_name`, fields, and what failed under `error`."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support.doc_pages import ROOT

FOLDERS = ("bus", "edge", "runner", "lamplighter")
LEVELS = {"debug", "info", "warning", "error", "exception"}
LOGGERS = re.compile(r"(self\.|.*context\.)?_?log\Z")
EVENT = re.compile(r"[a-z]+(_[a-z]+)+|serving\Z")
OTHER_NAMES_OF_ERROR = {"why", "exc", "exception", "err", "cause"}


def logged_calls() -> Iterator[tuple[str, ast.Call]]:
    for file in (file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                is_log = LOGGERS.match(ast.unparse(node.func.value))
                yield from [(f"{file.relative_to(ROOT)}:{node.lineno}", node)] if is_log else []


def faults(call: ast.Call) -> Iterator[str]:
    event = call.args[0] if len(call.args) == 1 else None
    if event is None or isinstance(event, ast.JoinedStr):
        yield "an event name and fields; no sentence, and no arguments for one"
    elif isinstance(event, ast.Constant) and not EVENT.fullmatch(str(event.value)):
        yield f"{event.value!r} is not an event name"
    if named := {keyword.arg for keyword in call.keywords} & OTHER_NAMES_OF_ERROR:
        yield f"{named} is named `error`, or `reason` where nothing failed"


def test_each_log_line_has_an_event_name_and_what_failed_under_error() -> None:
    calls = list(logged_calls())
    assert len(calls) > 100  # the walker finds them
    assert [(place, fault) for place, call in calls for fault in faults(call)] == []


@pytest.mark.parametrize(
    "line",
    ['log.info("two words")', 'log.info(f"job_{id}")', 'log.info("job_ended", 1)', 'log.info("job_ended", why=1)'],
)
def test_a_line_outside_the_scheme_is_found(line: str) -> None:
    call = ast.parse(line, mode="eval").body
    assert isinstance(call, ast.Call)
    assert list(faults(call))
