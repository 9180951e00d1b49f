"""Shim of the process engine: outlives the runner, records the exit code, and kills all descendants of its job.

Run as a script with the state folder as its argument. It uses only the standard library, so that it starts in
milliseconds. With TRIAL_FLAG and a spec as JSON it runs that program once, to test whether it can.

It prints one line to stdout once the job runs, or the reason why it does not to stderr, and then detaches.

The shim is the reaper of everything that the job starts (PR_SET_CHILD_SUBREAPER), so no process escapes it by forking.
SIGTERM makes the shim SIGKILL the whole process tree. The engine sends SIGTERM to the job first.

If jobs run as another user, the shim keeps the runner's user, and only the job becomes the other one (`become_user`).

In a sandbox the shim starts bubblewrap, which starts pid 1 of the sandbox, which starts the job. From outside, all of
them are descendants of the shim, with pids of their own.
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
LINK_LIMIT = 40  # links on the path to one folder; the kernel's own limit
MEMORY_POLL_INTERVAL_S = 0.05  # a fast job may exceed its memory limit for this long
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
OOM_SCORE = 500  # the same as in containers of the Docker engine
TRIAL_FLAG = "--try"
LOG_LIMIT_BYTES = 128 << 20  # of a stream on the disk; at least half of it is kept. Docker keeps 20 MB of both
PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE of linux/falloc.h
ENTERED = "entered\n"
# Runs in the sandbox: reports to a pipe that the sandbox is complete, then why the program does not start, if so.
# Python ignores two signals, and bubblewrap sets PWD: the program gets neither.
ENTER_PROGRAM = f"""
import os, signal, sys
pipe, command = int(sys.argv[1]), sys.argv[2:]
os.set_inheritable(pipe, False)
os.write(pipe, {ENTERED!r}.encode())
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
os.environ.pop("PWD", None)
try:
    os.execvp(command[0], command)
except OSError as error:
    os.write(pipe, f"{{error.strerror}}: {{command[0]!r}}".encode())
"""


def started_at(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 if it is gone or a zombie.

    A pid and its start time identify one process forever. Source: proc(5), /proc/pid/stat, fields 3 and 22, counted
    after the name in brackets.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def boot_id() -> str:
    """Return the id of this boot of the machine: pids and ticks start again with the next boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def find_descendants(pid: int) -> list[int]:
    """Return every living descendant of `pid`."""
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
        return os.listdir(folder)  # noqa: PTH208 - returns names
    except OSError:
        return []


def private_bytes(pid: int) -> int:
    """Return the memory of one process: resident without files and shared memory. Pages of a fork count twice."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return (int(resident) - int(shared)) * PAGE_BYTES


def proportional_bytes(pid: int) -> int:
    """Return the same with shared pages divided among those who share them; slow, so used only near the limit."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write the file atomically: a reader sees the old content or the new one."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(data))
    temporary.replace(path)


def kill_process(pid: int) -> None:
    """Send SIGKILL; a process that is gone is not an error."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def reap_adopted(job: int) -> None:
    """Reap orphans that this process inherited. The job itself is left to `subprocess`."""
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid == job:
                return
            os.waitpid(ended.si_pid, 0)


class FolderWay:
    """The path to a folder, resolved step by step: the folders passed, the links met, and the end."""

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
        """Return the first folder on the path that the effective user may not enter."""
        return next((folder for folder in self.folders if not os.access(folder, os.X_OK, effective_ids=True)), None)


def _split_path(path: str) -> "list[str]":
    return [part for part in reversed(path.split("/")) if part not in {"", "."}]


def become_user(user: "dict[str, Any]", places: "list[tuple[str, bool]]") -> None:
    """Become `user` permanently, with access to each folder of `places` (path, whether it is writable).

    Raises OSError. A folder may lie below one that the user may not enter, such as a checkout below a private home. It
    is then shown in a mount namespace of this process alone, where the private folder holds nothing but the paths to
    `places`.
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
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # a setuid program cannot restore rights


@contextlib.contextmanager
def _acting_as(user: "dict[str, Any]") -> "Iterator[None]":
    """Use the rights of `user` inside the block; root's rights return after it."""
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
    """Mount an empty folder over each barrier, and in it the paths to the ends of `ways`."""
    if LIBC.unshare(CLONE_NEWNS):
        reason = os.strerror(ctypes.get_errno())
        raise OSError(ctypes.get_errno(), f"a mount namespace to show what is below it cannot be created ({reason})")
    umask = os.umask(0o022)
    _mount(None, Path("/"), None, MS_REC | MS_SLAVE)
    sources = [(way, writable, os.open(way.end, os.O_PATH | os.O_DIRECTORY)) for way, writable in ways]
    for barrier in barriers:
        _mount("lamplighter", barrier, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
    for way, writable, source in sorted(
        sources, key=lambda source: len(source[0].folders)
    ):  # a folder before its parts
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


def start_program(spec: "dict[str, Any]", **streams: Any) -> "tuple[subprocess.Popen[bytes], int]":
    """Start the program of `spec` in a session of its own, as its user, in its sandbox if it has one. Raises OSError.

    Return what exits as the program does, and the pid of the program's process group.
    """
    if not spec.get("sandbox"):
        job = _spawn(spec, spec["command"], (), streams)
        return job, job.pid
    entered, pid = os.pipe(), os.pipe()
    reports = (entered[1], pid[1])
    enter = [sys.executable, "-I", "-S", "-c", ENTER_PROGRAM, str(entered[1])]
    try:
        job = _spawn(
            spec, [*spec["sandbox"], "--info-fd", str(pid[1]), "--", *enter, *spec["command"]], reports, streams
        )
    finally:
        for end in reports:
            os.close(end)
    with open(entered[0]) as reported, open(pid[0]) as info:  # noqa: PTH123 - descriptors
        report, pids = reported.read(), info.read()  # to their ends: the program has started, or cannot
    if not report.startswith(ENTERED):
        job.wait()
        raise OSError("bubblewrap failed")
    if error := report.removeprefix(ENTERED):
        raise OSError(error)
    return job, json.loads(pids)["child-pid"]


def _spawn(
    spec: "dict[str, Any]", command: "list[str]", inherited: "tuple[int, ...]", streams: "dict[str, Any]"
) -> "subprocess.Popen[bytes]":
    error_read, error_write = os.pipe()  # carries the child's error, which Popen does not report

    def enter() -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
        try:
            if spec.get("user"):
                become_user(spec["user"], spec["places"])
            os.chdir(spec["folder"])
        except OSError as error:
            os.write(error_write, str(error if error.filename else error.strerror).encode())
            raise

    try:
        return subprocess.Popen(
            command,
            env=spec["env"],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=inherited,
            preexec_fn=enter,  # noqa: PLW1509 - no threads here
            **streams,
        )
    except subprocess.SubprocessError as error:
        os.set_blocking(error_read, False)  # only an OSError was written to the pipe
        with contextlib.suppress(BlockingIOError):
            raise OSError(os.read(error_read, 4096).decode()) from error
        raise OSError(str(error)) from error
    finally:
        os.close(error_read)
        os.close(error_write)


def punch_old_output(path: Path, kept: int) -> None:
    """Free the disk space of all but the last `kept` bytes of a file that grows; offsets stay valid.

    On a file system without holes the file stays as it is.
    """
    with path.open("r+b") as file:
        found = os.fstat(file.fileno())
        if found.st_blocks * 512 > 2 * kept:
            end = ctypes.c_long(found.st_size - kept)
            ctypes.CDLL(None).fallocate(file.fileno(), PUNCH_HOLE, ctypes.c_long(0), end)


class Shim:
    """Supervisor of one job, from its start to its exit code."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.spec = json.loads((state / "spec.json").read_text())
        self.limit = self.spec["memory_mb"] << 20
        self.stopping = False
        self.oom_killed = False
        self.started_s = time.time()

    def start(self) -> "subprocess.Popen[bytes]":
        """Start the job in a session of its own. Raises OSError."""
        with (self.state / "stdout").open("ab") as out, (self.state / "stderr").open("ab") as err:
            if user := self.spec.get("user"):  # a program may open /dev/stderr
                os.fchown(out.fileno(), user["uid"], user["gid"])
                os.fchown(err.fileno(), user["uid"], user["gid"])
            job, pid = self.start_program(out, err)
        me = [os.getpid(), started_at(os.getpid())]
        sandboxed = bool(self.spec.get("sandbox"))
        write_json(
            self.state / "running.json",
            {"boot": boot_id(), "shim": me, "job": [pid, started_at(pid)], "is_sandboxed": sandboxed},
        )
        return job

    def start_program(self, out: Any, err: Any) -> "tuple[subprocess.Popen[bytes], int]":
        """Start the program. Raises OSError, with what a sandbox that failed has printed."""
        try:
            return start_program(self.spec, stdout=out, stderr=err)
        except OSError as error:
            printed = (self.state / "stderr").read_text(errors="replace").strip()
            raise OSError(f"{error}: {printed}" if printed else str(error)) from error

    def watch(self, job: "subprocess.Popen[bytes]") -> None:
        """Wait until the job exits; then kill what it left running, and record how it exited."""
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
        if self.spec.get("user"):  # another job of that user must not change the outputs any more
            (Path(self.spec["places"][-1][0]) / "out").chmod(0o700)
        code = job.returncode if job.returncode >= 0 else 128 - job.returncode
        write_json(
            self.state / "exit.json",
            {"code": code, "oom_killed": self.oom_killed, "started": self.started_s, "finished": time.time()},
        )

    def enforce_memory_limit(self) -> None:
        """Over the limit, kill the largest process, as the kernel does in a container."""
        members = find_descendants(os.getpid())
        if sum(private_bytes(pid) for pid in members) <= self.limit:
            return
        sizes = {pid: proportional_bytes(pid) for pid in members}
        if sum(sizes.values()) > self.limit:
            self.oom_killed = True
            kill_process(max(sizes, key=sizes.__getitem__))

    def kill_descendants(self) -> None:
        """Kill until nothing is left: a process that was forked in the meantime is found by the next pass."""
        while members := [pid for pid in find_descendants(os.getpid()) if started_at(pid)]:
            for pid in members:
                kill_process(pid)
            time.sleep(0.005)


def run_trial(spec: "dict[str, Any]") -> NoReturn:
    """Run the program of `spec` and exit as it does; print the reason to stderr if it cannot run."""
    try:
        sys.exit(start_program(spec)[0].wait())
    except OSError as error:
        sys.exit(str(error))


def main() -> NoReturn:
    """Start the job, detach from the runner, supervise."""
    if sys.argv[1] == TRIAL_FLAG:
        run_trial(json.loads(sys.argv[2]))
    state = Path(sys.argv[1])
    if os.fork():
        # The runner waits for this process and its pipe: the child closes stdout once the job runs or has failed.
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
    with contextlib.suppress(OSError):  # the runner may have died since: the job must be supervised all the same
        os.write(1, b"running\n")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    shim.watch(job)
    os._exit(0)


if __name__ == "__main__":
    main()
