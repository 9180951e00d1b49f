"""Run HeyGem through its own server, app_local.py.

It starts more slowly than the module and shows less of its progress, but its API is the same in every generation.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from heygem_worker import failures
from heygem_worker.vendor import FAILED, RUNNING, VendorStatus, VendorTask
from heygem_worker.vendor_processes import DescendantProcesses
from jobkit import TryAgain

PROGRAM = "app_local.py"
ACCEPTED, BUSY, UNKNOWN = 10000, 10001, 10004  # the API's codes
PING = "__ping__"  # a code that no job has
POLL_INTERVAL_S = 0.5
CALL_TIMEOUT_S = 30.0  # long, because the server answers one call at a time

# Ignore the proxies that the environment names: the server is on the loopback interface.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class HttpVendor:
    """Run PROGRAM of `home` in `folder`. The config names the first of `ports`; the server may listen on another."""

    name = "http"
    ready_lines: tuple[str, ...] = ()  # `start` returns at the first answer, which the server gives only when ready

    def __init__(self, home: Path, folder: Path, ports: tuple[int, ...]) -> None:
        self._home = home
        self._folder = folder
        self._ports = ports
        self._tick = threading.Event()  # never set; its wait() is the pause between two polls
        self._status = VendorStatus()
        self._process: subprocess.Popen[bytes] | None = None  # None until `start`
        self._processes: DescendantProcesses | None = None

    def start(self) -> None:
        argv = [sys.executable, PROGRAM]
        env = environment(self._home, self._folder)
        self._process = subprocess.Popen(argv, cwd=str(self._folder), env=env, stdin=subprocess.DEVNULL)
        self._processes = DescendantProcesses(self._process.pid)
        while True:
            for port in self._ports:
                self._url = f"http://127.0.0.1:{port}/easy/"
                if self._call("query?code=" + PING) is not None:
                    return
            self._tick.wait(POLL_INTERVAL_S)

    def mark_ready(self) -> None:
        if self._processes is not None:
            self._processes.mark_ready()

    def run(self, task: VendorTask) -> None:
        self._submit(task)
        where = "query?" + urllib.parse.urlencode({"code": task.code})
        while self._status.status == RUNNING:
            self._tick.wait(POLL_INTERVAL_S)
            said = self._call(where) or {}
            data = said.get("data") or {}
            if said.get("code") == UNKNOWN:
                self._status = VendorStatus(FAILED, message=str(said.get("msg")))
            elif "status" in data:
                self._status = VendorStatus(
                    int(data["status"]), int(data["progress"]), str(data["result"]), str(data["msg"])
                )

    def _submit(self, task: VendorTask) -> None:
        given = {"code": task.code, "audio_url": str(task.audio), "video_url": str(task.video), "pn": task.pn}
        given.update(chaofen=task.chaofen, watermark_switch=task.watermark, digital_auth=task.digital_auth)
        said = self._call("submit", given)
        if said is None:
            raise TryAgain("internal", "HeyGem's server did not answer: see the job's log")
        if said.get("code") != ACCEPTED:
            raise failures.classify_text(str(said.get("msg")))

    def status(self, code: str) -> VendorStatus:
        """Return the status of the last poll by `run`. Do not poll here: the server gives a final answer only once."""
        return self._status

    def find_dead(self) -> str:
        gone = self._processes.find_dead() if self._processes is not None else ""
        code = self._process.poll() if self._process is not None else None  # last: its end is the cause of the others'
        return gone if code is None else f"the server ended with exit code {code}"

    def _call(self, what: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """Return the server's JSON object; None if the call fails or the answer is not a JSON object."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + what, data, {"Content-Type": "application/json"})  # noqa: S310
        try:
            with _open(request, timeout=CALL_TIMEOUT_S) as answer:
                said = json.load(answer)
        except (OSError, ValueError):
            return None
        return said if isinstance(said, dict) else None


def environment(home: Path, folder: Path) -> dict[str, str]:
    """Return the server's environment: this process's, plus the variables of server_site/sitecustomize.py."""
    package = Path(__file__).resolve().parent
    paths = [str(package / "server_site"), str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    ours = {"PYTHONPATH": os.pathsep.join(paths), "HEYGEM_NOT_IN": str(home), "HEYGEM_BUT_IN": str(folder)}
    return {**os.environ, **ours, "HEYGEM_SERVER": "1"}


def free_port() -> int:
    """Return a loopback port that is free now; another program may take it before the server does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Return whether no program listens on `port`. Otherwise we might talk to the HeyGem of another job."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
