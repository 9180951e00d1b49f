"""A temporary copy of the tree in which one mutant at a time is tested. The checkout itself is never changed."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.mutants.operators import Mutant

ROOT = Path(__file__).resolve().parents[2]
RECORD_LIMIT_S = 1200
RECORD_ATTEMPTS = 2  # the trace makes tests slower, and other work may do so too
OPTIONS = ["--hypothesis-seed=0"]  # the same examples for every mutant
FIRST_MTIME_S = 2_000_000_000  # of changed modules: Python compiles a module again when its time has changed


class RecordedTest(NamedTuple):
    """One test of the unchanged tree: its duration, and the lines that it runs."""

    name: str
    seconds: float
    outcome: str
    lines: frozenset[tuple[str, int]]


class MutantOutcome(NamedTuple):
    """What became of a mutant. `test` failed first; `hang`: it was stopped at its deadline."""

    killed: bool
    test: str
    hang: bool
    seconds: float


class Workplace:
    """A copy of the tree in `folder`, and the server that runs tests there."""

    def __init__(self, folder: Path) -> None:
        self._tree = folder / "tree"
        self._result = folder / "result.json"
        self._log = folder / "log"
        self._plugins = folder / "plugins"
        self._mtime_s = itertools.count(FIRST_MTIME_S)
        for name in _tracked_files():
            (self._tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self._tree / name, follow_symlinks=False)
        self._plugins.mkdir()
        shutil.copy2(ROOT / "tests/mutants/plugin.py", self._plugins)
        environment = os.environ | {
            "PYTHONPATH": str(self._tree),  # before the checkout, for what the tests start
            "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self._server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/mutants/server.py")],
            cwd=self._tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the server, which has no run in progress."""
        with self._server:  # closes its stdin, and waits
            pass

    def preload(self, modules: list[str]) -> None:
        """Import libraries in the server, for all later runs."""
        self._ask({"preload": modules})

    def record(
        self, modules: tuple[str, ...], files: tuple[str, ...], keyword: str = ""
    ) -> tuple[list[RecordedTest], list[str]]:
        """Run the tests of `files` on the unchanged tree; return them, and the libraries that they import."""
        options = ["-k", keyword] if keyword else []
        for _ in range(RECORD_ATTEMPTS):
            reply = self._run(files, {"record": list(modules)}, RECORD_LIMIT_S, *options)
            if reply["code"] == 0:
                break
        else:
            raise SystemExit(f"mutants: the tests fail without a mutant, mend them first:\n{self._log_tail()}")
        recorded = json.loads(self._result.read_text())
        tests = [
            RecordedTest(name, test["seconds"], test["outcome"], frozenset(map(tuple, test["lines"])))
            for name, test in recorded["tests"].items()
        ]
        return tests, [name for name in recorded["modules"] if not self._is_excluded(name)]

    def test(self, mutant: Mutant, files: tuple[str, ...], deadlines: dict[str, float]) -> MutantOutcome:
        """Run the tests of `deadlines` on the tree with `mutant` in it."""
        with self._applied(mutant):
            limit_s = 30 + sum(deadlines.values())
            reply = self._run(files, {"deadlines": deadlines}, limit_s, "-x")
        failed = json.loads(self._result.read_text()) if self._result.exists() else {"test": "", "why": ""}
        if reply["code"] == 5:
            raise SystemExit(f"mutants: pytest found none of the tests:\n{self._log_tail()}")
        # The words of the package pytest-timeout, of its last resort, and of tests/event_loop.py.
        signs = ("from pytest-timeout", "~~~ Stack of", "it still waited at")
        hang = reply["code"] is None or any(sign in failed["why"] + self._log_tail() for sign in signs)
        return MutantOutcome(reply["code"] != 0, failed["test"], hang, reply["seconds"])

    @contextmanager
    def _applied(self, mutant: Mutant) -> Iterator[None]:
        path = self._tree / mutant.path
        source = path.read_bytes()
        try:
            self._write(path, mutant.apply(source))
            yield
        finally:
            self._write(path, source)

    def _write(self, path: Path, source: bytes) -> None:
        path.write_bytes(source)
        mtime_s = next(self._mtime_s)
        os.utime(path, (mtime_s, mtime_s))

    def _run(self, files: tuple[str, ...], what: dict[str, Any], limit_s: float, *options: str) -> dict[str, Any]:
        self._result.unlink(missing_ok=True)
        request = {
            "files": list(files),
            "options": [*OPTIONS, *options],
            "result": str(self._result),
            "log": str(self._log),
            "plugins": str(self._plugins),
            "timeout_s": limit_s,
        }
        return self._ask(request | what)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        line = self._server.stdout.readline()
        if not line:
            raise SystemExit(f"mutants: the server of the tests has ended with exit code {self._server.wait()}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _is_excluded(self, module: str) -> bool:
        first = module.partition(".")[0]
        # `_asyncio` and the like come with the modules that they are part of, and break those if they come first.
        if first in {"plugin", "__main__"} or first.startswith("_"):
            return True
        return (self._tree / first).exists() or (self._tree / f"{first}.py").exists()

    def _log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-6000:]


def _tracked_files() -> list[str]:
    """The files of the checkout, new ones too, without what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
