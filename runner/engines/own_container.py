"""A runner that is in a container itself: what it needs of that container to start jobs beside it.

The engine of the host starts the jobs, so three things must be the host's: the engine's socket, the process ids (of
the programs on a GPU, and of users who are logged in), and the path of the data folder, because the engine mounts
folders of it. The engine itself describes our container. If it does not know it, it is another engine's container, and
nothing can be checked. A container with a dockerd of its own, as in a CI, may be its own host: a missing socket may
appear there later, and is waited for as on a host.
"""

import os
import re
import shutil
import stat
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from msgspec import Struct

from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.port import EngineError

DOCKER_MARK = Path("/.dockerenv")
MOUNTS_FILE = Path("/proc/self/mountinfo")
INSPECT_TIMEOUT_S = 20.0
DAEMON_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not in the PATH of every user
_CONTAINER_ID = re.compile(r"containers/([0-9a-f]{64})/")  # the sources of /etc/hostname and /etc/resolv.conf


class ContainerFault(Struct, frozen=True):
    """One thing that the container lacks, and how to give it."""

    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}: {self.fix}"


def own_container_id(mounts: Path = MOUNTS_FILE) -> str | None:
    """Return the id of the container in which this process is; None outside of one. Blocking."""
    try:
        found = _CONTAINER_ID.search(mounts.read_text())
    except OSError:
        return None
    return found[1] if found else None


async def find_container_faults(data: Path, settings: DockerSettings) -> list[ContainerFault]:
    """Return what our container lacks; nothing outside of a container, or if the engine does not know it."""
    container = await anyio.to_thread.run_sync(own_container_id)
    if container is None and not await anyio.Path(DOCKER_MARK).exists():
        return []
    has_own_engine = await anyio.to_thread.run_sync(has_dockerd)
    fault = await anyio.to_thread.run_sync(partial(check_socket, settings.base_url, has_own_engine=has_own_engine))
    if fault is not None:
        return [fault]
    if container is None:
        return []
    try:
        with anyio.fail_after(INSPECT_TIMEOUT_S):
            async with DockerEngine(settings) as engine:
                return check_container(await engine.inspect(container), data)
    except (EngineError, TimeoutError):
        return []  # an engine that is away is waited for


def is_beside_its_jobs() -> bool:
    """Return whether this process is in a container, and the engine of its host starts the jobs. Blocking."""
    return (own_container_id() is not None or DOCKER_MARK.exists()) and not has_dockerd()


def has_dockerd() -> bool:
    """Return whether Docker's daemon is installed in this container. Blocking."""
    path = os.environ.get("PATH", os.defpath)
    return shutil.which("dockerd", path=os.pathsep.join((path, *DAEMON_FOLDERS))) is not None


def check_socket(base_url: str, *, has_own_engine: bool) -> ContainerFault | None:
    """Return what keeps this process from the engine's socket, None for a socket that works or is not a file.

    `has_own_engine`: a missing socket may still appear.
    """
    if not base_url.startswith("unix://"):
        return None
    path = Path(base_url.removeprefix("unix://"))
    if not path.exists():
        if has_own_engine:
            return None
        return ContainerFault(
            f"the Docker socket {path} is not in the runner's container", f"add the volume {path}:{path} to it"
        )
    if not os.access(path, os.R_OK | os.W_OK):
        group = path.stat().st_gid
        return ContainerFault(
            f"the user {os.getuid()} of the runner's container may not use {path}",
            f'set user: "0:0", or group_add: ["{group}"], for it',
        )
    if not stat.S_ISSOCK(path.stat().st_mode):
        return ContainerFault(
            f"{path} in the runner's container is not a socket", "start Docker on the host, then create it again"
        )
    return None


def check_container(inspected: Mapping[str, Any], data: Path) -> list[ContainerFault]:
    """Return what is missing in the engine's description of our container. `data`: the runner's data folder."""
    faults = []
    folder = data.resolve()
    source = _host_path(inspected.get("Mounts", ()), folder)
    if source != str(folder):
        there = f"is {source} there" if source else "is not a folder of the host"
        faults.append(
            ContainerFault(
                f"the data folder {folder} must have the same path on the host, where it {there}",
                f"add the volume {folder}:{folder} to the runner's container",
            )
        )
    if inspected.get("HostConfig", {}).get("PidMode") != "host":
        faults.append(
            ContainerFault("the runner's container does not see the processes of the host", "set pid: host for it")
        )
    return faults


def _host_path(mounts: Any, folder: Path) -> str | None:
    """Return where `folder` is on the host; None if it is in no mount."""
    mount = max(
        (mount for mount in mounts if folder.is_relative_to(mount["Destination"])),
        key=lambda mount: len(mount["Destination"]),
        default=None,
    )
    return str(Path(mount["Source"]) / folder.relative_to(mount["Destination"])) if mount else None
