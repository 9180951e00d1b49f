"""Stands beside one job of the process engine: outlives the runner, keeps the exit code, ends the job's whole family.

Run as a script with the state folder as its argument; standard library only, so that it starts in milliseconds.
It answers on stdout with one line once the job runs, or on stderr with why it does not, and then goes on by itself.

It is the reaper of everything the job starts (PR_SET_CHILD_SUBREAPER), so nothing escapes it by forking away.
SIGTERM to the shim means: kill them all now. The asking nicely before that is the engine's.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
POLL_S = 0.05  # memory is looked at this often: a fast job may overshoot its limit for so long
PAGE = os.sysconf("SC_PAGE_SIZE")
OOM_SCORE = 500  # as the Docker engine's


def started_at(pid: int) -> int:
    """When a process started, in clock ticks since boot: with it a pid names one process for ever. 0: it is gone.

    A zombie is gone too. Source: proc(5), /proc/pid/stat, fields 3 and 22, counted behind the name in brackets.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def boot() -> str:
    """Names this boot of the machine: pids and ticks begin anew with the next."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def family(pid: int) -> list[int]:
    """Every living descendant of `pid`."""
    found: list[int] = []
    for task in _listed(f"/proc/{pid}/task"):
        try:
            children = [int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *family(child)]
    return found


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are wanted
    except OSError:
        return []


def private_bytes(pid: int) -> int:
    """Memory of a process alone: resident without files and shared memory. Counts pages that a fork shares twice."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return (int(resident) - int(shared)) * PAGE


def proportional_bytes(pid: int) -> int:
    """The same with shared pages counted once over all who share them; slow, so asked only when it matters."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))


def write(path: Path, data: dict[str, Any]) -> None:
    """All of it or nothing."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data))
    part.replace(path)


def kill(pid: int) -> None:
    """KILL, whether it is still there or not."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def reap_adopted(job: int) -> None:
    """Reap what came to us as an orphan. The job itself is left to who started it."""
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid == job:
                return
            os.waitpid(ended.si_pid, 0)


class Shim:
    """One job's watch, from start to exit code."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.spec = json.loads((state / "spec.json").read_text())
        self.limit = self.spec["memory_mb"] << 20
        self.stopping = False
        self.oom_killed = False
        self.begun = time.time()

    def start(self) -> "subprocess.Popen[bytes]":
        """The job, in a session of its own. OSError if it cannot be."""
        with (self.state / "stdout").open("ab") as out, (self.state / "stderr").open("ab") as err:
            job = subprocess.Popen(
                self.spec["command"],
                cwd=self.spec["folder"],
                env=self.spec["env"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        me = [os.getpid(), started_at(os.getpid())]
        write(
            self.state / "running.json",
            {"boot": boot(), "shim": me, "job": [job.pid, started_at(job.pid)]},
        )
        return job

    def watch(self, job: "subprocess.Popen[bytes]") -> None:
        """Until it exits; then end what it left behind, and write down how it ended."""
        woken, signals = os.pipe()
        for end in (woken, signals):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(signals, warn_on_full_buffer=False)
        while job.poll() is None:
            if select.select([woken], [], [], POLL_S)[0]:
                os.read(woken, 512)
            reap_adopted(job.pid)
            self.keep_limit()
            if self.stopping:
                self.end_family()
        self.end_family()
        code = job.returncode if job.returncode >= 0 else 128 - job.returncode
        write(
            self.state / "exit.json",
            {"code": code, "oom_killed": self.oom_killed, "started": self.begun, "finished": time.time()},
        )

    def keep_limit(self) -> None:
        """Over the limit the largest process is killed, as the kernel does in a container."""
        members = family(os.getpid())
        if sum(private_bytes(pid) for pid in members) <= self.limit:
            return
        sizes = {pid: proportional_bytes(pid) for pid in members}
        if sum(sizes.values()) > self.limit:
            self.oom_killed = True
            kill(max(sizes, key=sizes.__getitem__))

    def end_family(self) -> None:
        """Kill until nothing is left: what forks meanwhile is found in the next round."""
        while members := [pid for pid in family(os.getpid()) if started_at(pid)]:
            for pid in members:
                kill(pid)
            time.sleep(0.005)


def main() -> NoReturn:
    """Start the job, detach from the runner, watch."""
    state = Path(sys.argv[1])
    if os.fork():
        # The runner waits for the pipe of this process, not for it: stdout closes once the job runs or cannot.
        os._exit(0)
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    shim = Shim(state)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: setattr(shim, "stopping", True))
    try:
        job = shim.start()
    except OSError as error:
        shim.end_family()
        sys.stderr.write(str(error))
        sys.stderr.flush()
        os._exit(1)
    with contextlib.suppress(OSError):  # it may have ended already
        Path(f"/proc/{job.pid}/oom_score_adj").write_text(str(OOM_SCORE))
    os.write(1, b"running\n")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    shim.watch(job)
    os._exit(0)


if __name__ == "__main__":
    main()
