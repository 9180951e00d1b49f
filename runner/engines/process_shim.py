"""Stands beside one job of the process engine: outlives the runner, keeps the exit code, ends the job's whole family.

Run as a script with the state folder as its argument; standard library only, so that it starts in milliseconds. With
TRY and a spec as JSON it runs that program once, to see whether it can.
It answers on stdout with one line once the job runs, or on stderr with why it does not, and then goes on by itself.

It is the reaper of everything the job starts (PR_SET_CHILD_SUBREAPER), so nothing escapes it by forking away.
SIGTERM to the shim means: kill them all now. The asking nicely before that is the engine's.

Where jobs run as another user, the shim stays the runner's and only the job becomes that user (`become`).
"""

import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
PR_SET_NO_NEW_PRIVS = 38
CLONE_NEWNS = 0x00020000  # linux/sched.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT = 1, 2, 4, 32  # linux/mount.h
MS_BIND, MS_REC, MS_SLAVE = 4096, 16384, 1 << 19
LIBC = ctypes.CDLL(None, use_errno=True)
LINK_LIMIT = 40  # on the way to one folder, as the kernel has it
MEMORY_POLL_INTERVAL_S = 0.05  # memory is looked at this often: a fast job may overshoot its limit for so long
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
OOM_SCORE = 500  # as the Docker engine's
TRIAL_FLAG = "--try"
LOG_LIMIT_BYTES = (
    128 << 20
)  # the most of a stream that stays on the disk, half of it at least; Docker keeps 20 MB of both
PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE of linux/falloc.h


def started_at(pid: int) -> int:
    """When a process started, in clock ticks since boot: with it a pid names one process for ever. 0: it is gone.

    A zombie is gone too. Source: proc(5), /proc/pid/stat, fields 3 and 22, counted behind the name in brackets.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def boot_id() -> str:
    """Names this boot of the machine: pids and ticks begin anew with the next."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def find_descendants(pid: int) -> list[int]:
    """Every living descendant of `pid`."""
    found: list[int] = []
    for task in _list_dir(f"/proc/{pid}/task"):
        try:
            children = [int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *find_descendants(child)]
    return found


def _list_dir(folder: str) -> list[str]:
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
    return (int(resident) - int(shared)) * PAGE_BYTES


def proportional_bytes(pid: int) -> int:
    """The same with shared pages counted once over all who share them; slow, so asked only when it matters."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))


def write_json(path: Path, data: dict[str, Any]) -> None:
    """All of it or nothing."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data))
    part.replace(path)


def kill_process(pid: int) -> None:
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


class FolderWay:
    """The way to a folder, one step at a time, links followed: the folders passed, the links met, where it ends."""

    def __init__(self, path: str) -> None:
        self.folders, self.links, self.end = [Path("/")], dict[Path, str](), Path("/")
        left = _split_path(path)
        while left:
            part = left.pop()
            step = self.end.parent if part == ".." else self.end / part
            if step.is_symlink() and len(self.links) < LINK_LIMIT:
                self.links[step] = os.readlink(step)  # noqa: PTH115 - as text
                left += _split_path(self.links[step])
                self.end = Path("/") if self.links[step].startswith("/") else self.end
            else:
                self.end = step
                self.folders.append(step)

    def find_barrier(self) -> "Path | None":
        """The first folder on it that the effective user may not enter."""
        return next((folder for folder in self.folders if not os.access(folder, os.X_OK, effective_ids=True)), None)


def _split_path(path: str) -> "list[str]":
    return [part for part in reversed(path.split("/")) if part not in {"", "."}]


def become_user(user: "dict[str, Any]", places: "list[tuple[str, bool]]") -> None:
    """Be `user` for ever, with a way to each folder of `places` (path, whether it may be written). OSError if not.

    A folder that lies behind one which the user may not enter (a checkout or a Python below a private home, say) is
    shown in a mount namespace of this process alone: there the private folder is empty but for the ways to `places`.
    """
    os.setgroups(user["groups"])
    ways = {path: FolderWay(path) for path, _ in places}
    with _acting_as(user):
        barriers = {path: way.find_barrier() for path, way in ways.items()}
    hidden = [(ways[path], writable) for path, writable in places if barriers[path] is not None]
    if hidden:
        above = {barrier for barrier in barriers.values() if barrier is not None}
        try:
            _mount_hidden(hidden, above)
        except OSError as error:
            raise OSError(error.errno, f"{_describe_denied(min(above), user)}, and {error.strerror}") from error
    with _acting_as(user):
        for path, _ in places:
            if (barrier := ways[path].find_barrier()) is not None or not os.access(path, os.R_OK, effective_ids=True):
                raise PermissionError(errno.EACCES, _describe_denied(barrier or Path(path), user))
    os.setresgid(user["gid"], user["gid"], user["gid"])
    os.setresuid(user["uid"], user["uid"], user["uid"])
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # no setuid program gives anything back


@contextlib.contextmanager
def _acting_as(user: "dict[str, Any]") -> "Iterator[None]":
    """Be judged as `user`; what root may do is there again afterwards."""
    gid = os.getegid()
    os.setegid(user["gid"])
    os.seteuid(user["uid"])
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)


def _describe_denied(folder: Path, user: "dict[str, Any]") -> str:
    found = folder.stat()
    return f"{user['name']} may not enter {folder} (mode {found.st_mode & 0o7777:04o}, owner {found.st_uid})"


def _mount_hidden(ways: "list[tuple[FolderWay, bool]]", barriers: "set[Path]") -> None:
    """Put an empty folder over each barrier, and in it what leads to the ends of `ways`."""
    if LIBC.unshare(CLONE_NEWNS):
        why = os.strerror(ctypes.get_errno())
        raise OSError(ctypes.get_errno(), f"no mount namespace can be made here to show what is behind it ({why})")
    umask = os.umask(0o022)
    _mount(None, Path("/"), None, MS_REC | MS_SLAVE)
    sources = [(way, writable, os.open(way.end, os.O_PATH | os.O_DIRECTORY)) for way, writable in ways]
    for barrier in barriers:
        _mount("lamplighter", barrier, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
    for way, writable, source in sorted(sources, key=lambda one: len(one[0].folders)):  # a folder before its parts
        way.end.mkdir(parents=True, exist_ok=True)
        _mount(f"/proc/self/fd/{source}", way.end, None, MS_BIND | MS_REC)
        if not writable:
            _mount(None, way.end, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)
        os.close(source)
    for link, target in ((link, target) for way, _, _ in sources for link, target in way.links.items()):
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
    os.umask(umask)


def _mount(source: "str | None", target: Path, kind: "str | None", flags: int, options: "str | None" = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    if LIBC.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]):
        raise OSError(ctypes.get_errno(), f"{target} cannot be mounted ({os.strerror(ctypes.get_errno())})")


def start_program(spec: "dict[str, Any]", **streams: Any) -> "subprocess.Popen[bytes]":
    """Start the program of `spec` in a session of its own, as its user. OSError if it cannot be."""
    told, tell = os.pipe()  # why the child could not become what it should: Popen itself would not say

    def enter() -> None:
        try:
            if spec.get("user"):
                become_user(spec["user"], spec["places"])
            os.chdir(spec["folder"])
        except OSError as error:
            os.write(tell, str(error if error.filename else error.strerror).encode())
            raise

    try:
        return subprocess.Popen(
            spec["command"],
            env=spec["env"],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=enter,  # noqa: PLW1509 - no threads here
            **streams,
        )
    except subprocess.SubprocessError as error:
        os.set_blocking(told, False)  # what was no OSError is not told
        with contextlib.suppress(BlockingIOError):
            raise OSError(os.read(told, 4096).decode()) from error
        raise OSError(str(error)) from error
    finally:
        os.close(told)
        os.close(tell)


def punch_old_output(path: Path, kept: int) -> None:
    """Give back the room of all but the last `kept` bytes of a file that grows; what is there keeps its offsets.

    On a file system without holes the file stays as it is.
    """
    with path.open("r+b") as file:
        found = os.fstat(file.fileno())
        if found.st_blocks * 512 > 2 * kept:
            end = ctypes.c_long(found.st_size - kept)
            ctypes.CDLL(None).fallocate(file.fileno(), PUNCH_HOLE, ctypes.c_long(0), end)


class Shim:
    """One job's watch, from start to exit code."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.spec = json.loads((state / "spec.json").read_text())
        self.limit = self.spec["memory_mb"] << 20
        self.stopping = False
        self.oom_killed = False
        self.started_s = time.time()

    def start(self) -> "subprocess.Popen[bytes]":
        """The job, in a session of its own. OSError if it cannot be."""
        with (self.state / "stdout").open("ab") as out, (self.state / "stderr").open("ab") as err:
            if user := self.spec.get("user"):  # so that a program may open /dev/stderr
                os.fchown(out.fileno(), user["uid"], user["gid"])
                os.fchown(err.fileno(), user["uid"], user["gid"])
            job = start_program(self.spec, stdout=out, stderr=err)
        me = [os.getpid(), started_at(os.getpid())]
        write_json(
            self.state / "running.json",
            {"boot": boot_id(), "shim": me, "job": [job.pid, started_at(job.pid)]},
        )
        return job

    def watch(self, job: "subprocess.Popen[bytes]") -> None:
        """Until it exits; then end what it left behind, and write down how it ended."""
        woken, signals = os.pipe()
        for end in (woken, signals):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(signals, warn_on_full_buffer=False)
        while job.poll() is None:
            if select.select([woken], [], [], MEMORY_POLL_INTERVAL_S)[0]:
                os.read(woken, 512)
            reap_adopted(job.pid)
            self.enforce_memory_limit()
            for stream in ("stdout", "stderr"):
                punch_old_output(self.state / stream, LOG_LIMIT_BYTES // 2)
            if self.stopping:
                self.kill_descendants()
        self.kill_descendants()
        if self.spec.get("user"):  # another job of that user must not change what is collected now
            (Path(self.spec["places"][-1][0]) / "out").chmod(0o700)
        code = job.returncode if job.returncode >= 0 else 128 - job.returncode
        write_json(
            self.state / "exit.json",
            {"code": code, "oom_killed": self.oom_killed, "started": self.started_s, "finished": time.time()},
        )

    def enforce_memory_limit(self) -> None:
        """Over the limit the largest process is killed, as the kernel does in a container."""
        members = find_descendants(os.getpid())
        if sum(private_bytes(pid) for pid in members) <= self.limit:
            return
        sizes = {pid: proportional_bytes(pid) for pid in members}
        if sum(sizes.values()) > self.limit:
            self.oom_killed = True
            kill_process(max(sizes, key=sizes.__getitem__))

    def kill_descendants(self) -> None:
        """Kill until nothing is left: what forks meanwhile is found in the next round."""
        while members := [pid for pid in find_descendants(os.getpid()) if started_at(pid)]:
            for pid in members:
                kill_process(pid)
            time.sleep(0.005)


def run_trial(spec: "dict[str, Any]") -> NoReturn:
    """Run the program of `spec` and exit as it does; on stderr why it cannot be."""
    try:
        sys.exit(start_program(spec).wait())
    except OSError as error:
        sys.exit(str(error))


def main() -> NoReturn:
    """Start the job, detach from the runner, watch."""
    if sys.argv[1] == TRIAL_FLAG:
        run_trial(json.loads(sys.argv[2]))
    state = Path(sys.argv[1])
    if os.fork():
        # The runner waits for the pipe of this process, not for it: stdout closes once the job runs or cannot.
        os._exit(0)
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    shim = Shim(state)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: setattr(shim, "stopping", True))
    try:
        job = shim.start()
    except OSError as error:
        shim.kill_descendants()
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
