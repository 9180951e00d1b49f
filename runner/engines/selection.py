"""Selection of the engine that runs the jobs of a data folder: decided once, at its first start, and kept there.

With `auto`, the first start chooses Docker if the machine has a Docker client or an engine was configured, else the
process engine. Whether Docker answers at that moment does not matter: it may be starting too. Docker, once chosen, is
never replaced by itself with an engine of less isolation. Where jobs of the process engine ran in a sandbox, they run
without one only if a setting says so, also after a time with Docker. A setting that names an engine wins, and is kept.

The second half checks a runner that is in a container itself. It needs three things of the host to start jobs beside
it: the engine's socket, the process ids (of the programs on a GPU, and of users who are logged in), and the path of the
data folder, because the engine mounts folders of it. The engine itself describes our container. If it does not know it,
it is another engine's container, and nothing can be checked. A container with a dockerd of its own, as in a CI, may be
its own host: a missing socket may appear there later, and is waited for as on a host.
"""

import os
import re
import shutil
import stat
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, assert_never

import anyio
import anyio.to_thread
import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace

from bus.secret_files import atomic_write
from runner.egress.proxy import EgressProxy, EgressRules
from runner.engines.port import ContainerEngine, EngineError, EngineName
from runner.engines.process import CannotRunJobs, ProcessEngine
from runner.engines.process_job import (
    BUBBLEWRAP_NOT_INSTALLED,
    NoSuchUser,
    SandboxSetting,
    current_user_name,
    find_bubblewrap,
    resolve_job_user,
)

DECISION_FILE = "engine.json"
DOCKER_SOCKET = "/var/run/docker.sock"

JOBKIT_DIR = Path(__file__).resolve().parents[2] / "images" / "jobkit"
CLEANUP_TIMEOUT_S = 20.0


class EngineUnusable(Exception):
    """No engine can run jobs with these settings; the message says what to change."""


class EngineDecisionUnreadable(EngineUnusable):
    """The kept decision cannot be read, and is not guessed; the message says what to do."""


class EngineDecision(Struct, frozen=True):
    """Content of DECISION_FILE. `why` is for people. `has_sandbox`: processes of jobs ran in a sandbox here."""

    engine: EngineName
    why: str
    at: datetime
    has_sandbox: bool = False


class EngineChoice(NamedTuple):
    """The decision from now on, and the previous engine if it was a different one."""

    decision: EngineDecision
    previous: EngineName | None = None


class EngineConfig(Struct, frozen=True, kw_only=True):
    """Settings of the runner that concern its engine. `job_user` and `sandbox` are those of the process engine.

    `own_services`: the hosts of broker and edge.
    """

    data: Path
    engine: EngineName | Literal["auto"]
    docker_socket: str | None
    job_user: str | None
    slots: int
    own_services: tuple[str, ...] = ()
    sandbox: SandboxSetting = "none"


class SelectedEngine(NamedTuple):
    """The engine to use, not opened yet. `run_as` is the user that jobs run as, None if they run in containers.

    `why` and `summary` are for people. `previous` is the engine until now, if it was a different one.
    """

    engine: ContainerEngine
    run_as: str | None
    why: str
    summary: str
    previous: EngineName | None


async def select_engine(config: EngineConfig, images: Iterable[Path], now: datetime) -> SelectedEngine:
    """Decide on the engine and build it; check that its user can run jobs from the folders `images`.

    A runner in a container is checked for what it needs of that container. Raises EngineUnusable.
    """
    docker_found = find_docker(config.docker_socket, os.environ)
    try:
        choice = await anyio.to_thread.run_sync(choose_engine, config.data, config.engine, docker_found, now)
        match choice.decision.engine:
            case "docker":
                faults = await find_container_faults(config.data, docker_url(config.docker_socket))
                if faults:
                    raise EngineUnusable("; ".join(map(str, faults)))
                return _select_docker(config, choice)
            case "process":
                return await _select_process(config, choice, images)
            case unknown:
                assert_never(unknown)
    except (NoSuchUser, CannotRunJobs, OSError) as error:
        raise EngineUnusable(str(error)) from error


def _select_docker(config: EngineConfig, choice: EngineChoice) -> SelectedEngine:
    why = choice.decision.why
    summary = f"jobs run in Docker containers ({why}; engine at {docker_url(config.docker_socket)})"
    return SelectedEngine(_docker_engine(config), None, why, summary, choice.previous)


async def _select_process(config: EngineConfig, choice: EngineChoice, images: Iterable[Path]) -> SelectedEngine:
    """Build the process engine. Raises NoSuchUser, CannotRunJobs, OSError if its user or sandbox cannot run jobs."""
    plain, run_as = _process_engine(config)
    jobs, images = config.data.resolve() / "jobs", list(images)
    await anyio.to_thread.run_sync(plain.check_job_user, jobs, images)
    engine, problem = await anyio.to_thread.run_sync(_add_sandbox, config, plain, jobs, images)
    await anyio.to_thread.run_sync(_record_sandbox, config, choice.decision, engine is not plain, problem)
    why = choice.decision.why
    if engine is not plain:
        summary = (
            f"jobs run as processes of the user {run_as}, each in a sandbox of bubblewrap, not in containers ({why}): "
            "no images are pulled. engine = docker runs them in containers"
        )
    elif problem:
        summary = (
            f"jobs run as plain processes of the user {run_as}, not in containers ({why}) or a sandbox ({problem}): "
            "they see this machine and its network as that user does, and no images are pulled. "
            "engine = docker runs them in containers"
        )
    else:
        summary = (
            f"jobs run as plain processes of the user {run_as}, not in containers ({why}): "
            "they see this machine and its network as that user does, and no images are pulled. "
            "engine = docker runs them in containers"
        )
    return SelectedEngine(engine, run_as, why, summary, choice.previous)


def _add_sandbox(
    config: EngineConfig, plain: ProcessEngine, jobs: Path, images: Iterable[Path]
) -> tuple[ProcessEngine, str]:
    """Return the engine with the sandbox that the settings ask for, or `plain` and why it has none. Blocking.

    Raises NoSuchUser, CannotRunJobs, OSError if the sandbox is required and does not work.
    """
    if config.sandbox == "none":
        return plain, ""
    bubblewrap, engine = find_bubblewrap(), plain
    problem = None if bubblewrap else BUBBLEWRAP_NOT_INSTALLED
    if bubblewrap is not None:
        engine, _ = _process_engine(config, bubblewrap)
        problem = engine.why_no_sandbox(jobs, images)
    if problem is None:
        return engine, ""
    if config.sandbox == "bubblewrap":
        raise CannotRunJobs(f'jobs cannot run in a sandbox ({problem}): fix that, or set [process] sandbox = "none"')
    return plain, problem


def _record_sandbox(config: EngineConfig, decision: EngineDecision, has_sandbox: bool, problem: str) -> None:
    """Record whether jobs run in a sandbox. Blocking. Raises OSError, and CannotRunJobs if they did and cannot now.

    A kernel or a package that was updated must not take the isolation away without a word.
    """
    if decision.has_sandbox and problem:
        raise CannotRunJobs(
            f"jobs ran in a sandbox on this host, and that does not work any more ({problem}): fix it, or set "
            '[process] sandbox = "none" to run them without one'
        )
    if decision.has_sandbox != has_sandbox:
        atomic_write(config.data / DECISION_FILE, msgspec.json.encode(replace(decision, has_sandbox=has_sandbox)))


def choose_engine(
    data: Path, configured: EngineName | Literal["auto"], docker_found: str | None, now: datetime
) -> EngineChoice:
    """Read the decision kept in `data`, or make it and keep it. Blocking.

    `docker_found` is the result of `find_docker`. Raises EngineDecisionUnreadable, OSError.
    """
    kept = _read_decision(data / DECISION_FILE)
    decision = _decide(kept, configured, docker_found, now)
    if decision is kept:
        return EngineChoice(decision)
    atomic_write(data / DECISION_FILE, msgspec.json.encode(decision))
    return EngineChoice(decision, kept.engine if kept else None)


def preview_engine(
    data: Path, configured: EngineName | Literal["auto"], docker_found: str | None, now: datetime
) -> EngineName:
    """Return the engine that `choose_engine` would choose, and keep nothing. Blocking.

    Raises EngineDecisionUnreadable.
    """
    return _decide(_read_decision(data / DECISION_FILE), configured, docker_found, now).engine


def _decide(
    kept: EngineDecision | None, configured: EngineName | Literal["auto"], docker_found: str | None, now: datetime
) -> EngineDecision:
    if kept is not None and configured in {"auto", kept.engine}:
        return kept
    if configured != "auto":
        has_sandbox = kept is not None and kept.has_sandbox  # also after a time with Docker
        return EngineDecision(configured, f"asked for by name: engine = {configured}", now, has_sandbox)
    if docker_found is not None:
        return EngineDecision("docker", docker_found, now)
    return EngineDecision("process", "this machine had no Docker client at the first start", now)


def _read_decision(file: Path) -> EngineDecision | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=EngineDecision)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise EngineDecisionUnreadable(
            f"{file}, which records the engine of this host, cannot be read ({error}): "
            "delete it, and start with engine = docker or engine = process"
        ) from error


def find_docker(named: str | None, environ: Mapping[str, str]) -> str | None:
    """Return why this machine counts as one with Docker; None if it does not. `named` is the setting docker_socket."""
    if named:
        return f"docker_socket names {named}"
    if environ.get("DOCKER_HOST"):
        return f"DOCKER_HOST names {environ['DOCKER_HOST']}"
    if (program := shutil.which("docker", path=environ.get("PATH", os.defpath))) is not None:
        return f"{program} is installed"
    return f"{DOCKER_SOCKET} exists" if Path(DOCKER_SOCKET).exists() else None


def docker_url(docker_socket: str | None) -> str:
    """Return the address of the Docker engine. `docker_socket` is the setting."""
    address = docker_socket or os.environ.get("DOCKER_HOST") or DOCKER_SOCKET
    return address if "://" in address else f"unix://{address}"


def _build_engine(config: EngineConfig, name: EngineName) -> ContainerEngine:
    """Build the engine of this name. Raises NoSuchUser."""
    match name:
        case "docker":
            return _docker_engine(config)
        case "process":
            return _process_engine(config)[0]
        case unknown:
            assert_never(unknown)


def _docker_engine(config: EngineConfig) -> ContainerEngine:
    # Importing docker-py takes a quarter of a runner's start, and the process engine does not need it.
    from runner.engines.docker import DockerEngine, DockerSettings  # noqa: PLC0415

    settings = DockerSettings.for_slots(docker_url(config.docker_socket), config.slots)
    return DockerEngine(settings, EgressProxy(EgressRules(config.own_services)))


def _process_engine(config: EngineConfig, bubblewrap: str | None = None) -> tuple[ProcessEngine, str]:
    """Return the process engine and the user that its jobs run as. Raises NoSuchUser."""
    user = resolve_job_user(config.job_user)
    proxy = EgressProxy(EgressRules(config.own_services))
    engine = ProcessEngine(config.data.resolve() / "processes", JOBKIT_DIR, user, proxy, bubblewrap)
    return engine, user.name if user else current_user_name()


async def remove_previous_containers(config: EngineConfig, previous: EngineName, installation: str, host: str) -> None:
    """Remove the containers of the previous engine, which nothing would follow. If it does not answer, they stay."""
    try:
        engine = _build_engine(config, previous)
        async with engine:
            with anyio.fail_after(CLEANUP_TIMEOUT_S):
                for found in await engine.find(installation, host):
                    await engine.remove(found.handle)
    except (EngineError, TimeoutError, NoSuchUser) as error:
        structlog.get_logger("runner").warning("previous_engine_cleanup_failed", engine=previous, error=str(error))


async def remove_all_containers(config: EngineConfig, installation: str, host: str) -> None:
    """Remove the containers of the engine that this data folder uses. For a runner that will not start again."""
    kept = await anyio.to_thread.run_sync(_read_decision, config.data / DECISION_FILE)
    if kept is not None:
        await remove_previous_containers(config, kept.engine, installation, host)


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


async def find_container_faults(data: Path, base_url: str) -> list[ContainerFault]:
    """Return what our container lacks; nothing outside of a container, or if the engine does not know it.

    `base_url`: the engine's address.
    """
    container = await anyio.to_thread.run_sync(own_container_id)
    if container is None and not await anyio.Path(DOCKER_MARK).exists():
        return []
    has_own_engine = await anyio.to_thread.run_sync(has_dockerd)
    fault = await anyio.to_thread.run_sync(partial(check_socket, base_url, has_own_engine=has_own_engine))
    if fault is not None:
        return [fault]
    if container is None:
        return []
    from runner.engines.docker import DockerEngine, DockerSettings  # noqa: PLC0415 - see _docker_engine

    try:
        with anyio.fail_after(INSPECT_TIMEOUT_S):
            async with DockerEngine(DockerSettings(base_url)) as engine:
                return check_container(await engine.inspect(container), data)
    except (EngineError, TimeoutError):
        return []  # an engine that is away is waited for


def own_container_id(mounts: Path = MOUNTS_FILE) -> str | None:
    """Return the id of the container in which this process is; None outside of one. Blocking."""
    try:
        found = _CONTAINER_ID.search(mounts.read_text())
    except OSError:
        return None
    return found[1] if found else None


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
