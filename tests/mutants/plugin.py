"""The pytest plugin of `just mutants`. It is loaded in the process that runs the tests, beside no other file of ours.

Recording, it notes for each test its duration and the lines of the modules that it runs. Otherwise it runs only given
tests, in a given order, each with a deadline of its own, and notes the first that fails.
"""

import json
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

import pytest


class LineRecorder:
    """Record which test runs which lines of `files`. What a fixture of a module or session runs counts for its file."""

    def __init__(self, root: Path, files: list[str], result: Path) -> None:
        self._names = {str(root / name): name for name in files}
        self._result = result
        self._lines: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._outcomes: dict[str, str] = {}
        self._current: set[tuple[str, int]] = set()

    def pytest_sessionstart(self) -> None:
        threading.settrace(self._trace_call)
        sys.settrace(self._trace_call)

    def _trace_call(self, frame: FrameType, event: str, _: object) -> Any:
        name = self._names.get(frame.f_code.co_filename)
        if name is None:
            return None

        def trace_line(frame: FrameType, event: str, _: object) -> Any:
            self._current.add((name, frame.f_lineno))
            return trace_line

        return trace_line(frame, event, None)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self._current = self._lines[item.nodeid]
        started = time.monotonic()
        try:
            return (yield)
        finally:
            self._seconds[item.nodeid] = time.monotonic() - started

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        if fixturedef.scope == "function":
            return (yield)
        before, self._current = self._current, self._lines[request.node.nodeid.partition("::")[0]]
        try:
            return (yield)
        finally:
            self._current = before

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or report.skipped:
            self._outcomes[report.nodeid] = report.outcome

    def pytest_sessionfinish(self) -> None:
        sys.settrace(None)
        threading.settrace(None)
        tests = {
            name: {
                "seconds": seconds,
                "outcome": self._outcomes.get(name, "passed"),
                "lines": sorted(self._lines[name] | self._lines.get(name.partition("::")[0], set())),
            }
            for name, seconds in self._seconds.items()
        }
        self._result.write_text(json.dumps({"tests": tests, "modules": list(sys.modules)}))


class ChosenTests:
    """Run the tests of `deadlines` in its order, each with its deadline in seconds; note the first that fails."""

    def __init__(self, deadlines: dict[str, float], result: Path) -> None:
        self._deadlines = deadlines
        self._result = result

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        rank = {name: place for place, name in enumerate(self._deadlines)}
        chosen = sorted((item for item in items if item.nodeid in rank), key=lambda item: rank[item.nodeid])
        for item in chosen:
            item.add_marker(pytest.mark.timeout(self._deadlines[item.nodeid]), append=False)
        items[:] = chosen

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self._result.exists():
            self._result.write_text(json.dumps({"test": report.nodeid, "why": str(report.longrepr)[-4000:]}))
