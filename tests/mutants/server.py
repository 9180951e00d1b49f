"""Run tests in forks of one process that has already imported the libraries: a run then costs no start of its own.

A script: it imports nothing of this repository, so that each fork imports the changed modules. It reads one JSON object
a line from stdin and answers with one. It is the parent of everything that a run leaves behind, and kills that.
"""

import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
MEMORY_LIMIT_BYTES = 16 << 30  # of address space: a mutant must not take the machine's memory


def children_of(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                words = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(words[1]) == parent:
                    found.append(int(folder.name))
    return found


def kill_leftovers() -> None:
    """Kill what the run has left; a killed process gives its own children to this one."""
    while left := children_of(os.getpid()):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def run_tests(request: dict[str, Any]) -> int:
    """Run pytest in this process, which is a fork; return its exit code."""
    sys.path.insert(0, request["plugins"])
    import plugin  # type: ignore[import-not-found]

    sys.path.pop(0)
    import pytest

    root, result = Path.cwd(), Path(request["result"])
    if "record" in request:
        chosen = plugin.LineRecorder(root, request["record"], result)
    else:
        chosen = plugin.ChosenTests(request["deadlines"], result)
    options = ["-q", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist", *request["options"]]
    return int(pytest.main([*options, *request["files"]], plugins=[chosen]))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    for name in request.get("preload", ()):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    if "files" not in request:
        return {}
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        exit_code = 70
        try:
            os.setsid()
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            for stream in (1, 2):
                os.dup2(log, stream)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
            exit_code = run_tests(request)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(exit_code)
    code: int | None = None
    while code is None and time.monotonic() - started < request["timeout_s"]:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
        else:
            time.sleep(0.02)
    kill_leftovers()
    return {"code": code, "seconds": round(time.monotonic() - started, 2)}


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    sys.path[0] = str(Path.cwd())
    for line in sys.stdin:
        reply = answer(json.loads(line))
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
