"""The process engine: jobs as child processes, from the same image folders, where there is no container engine.

If the runner is root, a job runs as another user, and that is the only barrier between the job and the machine.

A shim (`process_shim`) runs beside each job and keeps its output and exit code in a state folder (`process_job`). So
the job survives the runner, and the next runner process adopts it.
"""

import asyncio
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self

import msgspec
import structlog

from bus.secret_files import make_private_folder
from runner.egress.proxy import EgressProxy, ServedListener, proxy_env
from runner.engines import process_shim
from runner.engines.launch import measure_processes, prepare_job_dir, prepare_mounts, remove_tree, start_cancellable
from runner.engines.output_streams import POLL_INTERVAL_S, FolderWatch
from runner.engines.port import (
    JOB_ENV,
    WARM_ENV,
    ContainerExit,
    ContainerIdentity,
    ContainerLimits,
    ContainerSpec,
    ContainerUsage,
    EngineError,
    EngineInfo,
    EngineUnavailable,
    FoundContainer,
    GpuInjection,
    NoSuchContainer,
    OutputChunk,
    OutputCursor,
    StartFailed,
    complete_length,
)
from runner.engines.process_job import (
    READ_BYTES,
    SANDBOX_REMEDY,
    STREAMS,
    JobUser,
    ProcessSpec,
    ProcessStateDir,
    current_user_name,
    sandbox_options,
)
from schemas.endpoint_parts import PROCESS_ISOLATION, SANDBOX_ISOLATION

LOOPBACK = "127.0.0.1"
KILL_TIMEOUT_S = 10.0
KILL_REPEAT_S = 0.5
START_LIMIT = 4  # concurrent starts
REMOVED_PREFIX = ".gone-"  # name prefix of a state folder that is being removed
TRIAL_PREFIX = "warm-try-"  # recovery removes a folder with this prefix if this process is killed
_NO_IDENTITY = ContainerIdentity(installation="", host="")
LIMITS_NOTE = "memory and disk are only monitored; CPUs and processes are not limited"
USER_REMEDY = (
    "let that user enter it, move Python and the images to where it may, "
    'or set [process] user = "" to run jobs as the runner\'s own user, with access to all that the runner can read'
)


class CannotRunJobs(Exception):
    """Jobs cannot run as the configured user; the message says why and what to do."""


class ProcessEngine:
    """Runs image folders; keeps its records in `state`. `jobkit` is the folder that contains the package of that name.

    `user` runs the jobs; None is the runner's own user. `bubblewrap`: the program that gives each job a sandbox.
    """

    name = "process"
    containers_outlive_runner = False
    images = None
    injection_modes: tuple[GpuInjection, ...] = ()

    def __init__(
        self,
        state: Path,
        jobkit: Path,
        user: JobUser | None = None,
        proxy: EgressProxy | None = None,
        bubblewrap: str | None = None,
    ) -> None:
        self._bubblewrap = bubblewrap
        self._proxy = proxy or EgressProxy()
        self._served: dict[str, ServedListener] = {}
        self._state = state
        self._jobkit = jobkit
        self._user = user
        self._pool = ThreadPoolExecutor(START_LIMIT, thread_name_prefix="start")
        self._watch = FolderWatch()

    async def __aenter__(self) -> Self:
        self._watch.open()
        await asyncio.to_thread(self._delete_leftovers)
        return self

    async def __aexit__(self, *_: object) -> None:
        for served in self._served.values():
            served.close()
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)  # waits until cancelled starts are undone
        self._watch.close()

    async def start(self, spec: ContainerSpec) -> str:
        if spec.egress is None:
            return await start_cancellable(self._pool, lambda: self._start(spec), self._discard)
        # Nothing keeps a process from going round the proxy. Programs that use it meet the same rules as elsewhere.
        listener = socket.create_server((LOOPBACK, 0))
        served = self._proxy.serve(listener, spec.egress.allow)
        spec = msgspec.structs.replace(spec, env={**proxy_env(listener.getsockname()[1]), **spec.env})
        try:
            handle = await start_cancellable(self._pool, lambda: self._start(spec), self._discard)
        except BaseException:
            served.close()
            raise
        self._served[handle] = served
        return handle

    def _start(self, spec: ContainerSpec) -> str:
        if not spec.command or not Path(spec.folder).is_dir():
            raise StartFailed("image_missing", f"image {spec.image} has no folder here, or no [process] command")
        try:
            folder = self._create(spec)
            problem = _start_shim(folder)
        except OSError as error:
            raise StartFailed("engine_error", f"the job cannot be started: {error}") from error
        if problem:
            _discard_state_dir(folder)
            raise StartFailed("engine_error", problem)
        return folder.name

    def check_job_user(self, jobs: Path, images: Iterable[Path]) -> None:
        """Start Python once as jobs will, with access to all `images` and to a folder in `jobs`. Blocking.

        Raises CannotRunJobs, OSError.
        """
        if self._user is not None and (lines := self._try(jobs, images, is_sandboxed=False)):
            raise CannotRunJobs(f"jobs cannot run as {self._user.name}: {lines[-1]}: {USER_REMEDY}")

    def why_no_sandbox(self, jobs: Path, images: Iterable[Path]) -> str | None:
        """Start Python once in the sandbox; return why that fails, and what to do. Blocking. Raises OSError."""
        lines = self._try(jobs, images, is_sandboxed=True)
        return f"{lines[0]}: {SANDBOX_REMEDY}" if lines else None

    def _try(self, jobs: Path, images: Iterable[Path], *, is_sandboxed: bool) -> list[str]:
        """Return what a trial job printed that failed, at least one line; nothing if it ran."""
        with tempfile.TemporaryDirectory(prefix=TRIAL_PREFIX, dir=jobs) as trial_dir:
            job_dir = Path(trial_dir)
            prepare_job_dir(job_dir, self._owner, warm=False)
            code = f"import json, zlib; open({str(job_dir / 'out' / 'tried')!r}, 'w').close()"
            command, env = (sys.executable, "-c", code), {"PYTHONPATH": str(self._jobkit)}
            paths = self._list_job_paths([str(image) for image in images], job_dir)
            spec = ContainerSpec(
                identity=_NO_IDENTITY, image="", folder=str(job_dir), job_dir=job_dir, limits=ContainerLimits(0, 0)
            )
            sandbox = self._sandbox(spec, [path for path, _ in paths[:-1]]) if is_sandboxed else ()
            trial = ProcessSpec(_NO_IDENTITY, command, str(job_dir), env, 0, self._user, paths, sandbox)
            result = _run_shim(process_shim.TRIAL_FLAG, msgspec.json.encode(trial).decode())
        if not result.returncode:
            return []
        return result.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {result.returncode}"]

    @property
    def _owner(self) -> tuple[int, int]:
        return (self._user.uid, self._user.gid) if self._user else (os.geteuid(), os.getegid())

    def _sandbox(self, spec: ContainerSpec, readable: Iterable[str]) -> tuple[str, ...]:
        """Return bubblewrap with its options for a job; nothing where jobs have no sandbox."""
        if self._bubblewrap is None:
            return ()
        python = (*readable, sys.executable)  # its links may lead through other folders than its prefixes
        hidden = (self._state.parent, Path(os.environ.get("HOME", os.sep)))
        return (self._bubblewrap, *sandbox_options(spec, python, hidden))

    def _list_job_paths(self, images: Iterable[str], job_dir: Path) -> tuple[tuple[str, bool], ...]:
        """Return the folders that a job has to reach, its own folder last."""
        readable = dict.fromkeys((sys.base_prefix, sys.prefix, str(self._jobkit), *images))
        return (*((path, False) for path in readable), (str(job_dir), True))

    def _create(self, spec: ContainerSpec) -> Path:
        owner = self._owner
        prepare_job_dir(spec.job_dir, owner, warm=spec.env.get(WARM_ENV) == "1")
        prepare_mounts(spec.mounts, owner)
        make_private_folder(self._state)
        folder = Path(tempfile.mkdtemp(prefix=f"{spec.identity.job or 'warm'}-", dir=self._state))
        volumes = [str(mount.source) for mount in spec.mounts if not mount.is_writable]
        caches = [(str(mount.source), True) for mount in spec.mounts if mount.is_writable]
        paths = (*caches, *self._list_job_paths([spec.folder, *volumes], spec.job_dir))
        command = spec.entrypoint_override or spec.command
        sandbox = self._sandbox(spec, [path for path, _ in self._list_job_paths([spec.folder], spec.job_dir)[:-1]])
        memory_mb = spec.limits.memory_mb
        ProcessStateDir(folder).write_spec(
            ProcessSpec(spec.identity, command, spec.folder, self._env(spec), memory_mb, self._user, paths, sandbox)
        )
        return folder

    @staticmethod
    def _search_path() -> str:
        """Return the search path: the runner's own Python first, with the programs beside it."""
        return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"

    def _env(self, spec: ContainerSpec) -> dict[str, str]:
        """Return the job's environment, which has little of the runner's: no keys, no proxies."""
        scratch = str(spec.job_dir / "tmp")
        base = {
            "PATH": self._search_path(),
            "LANG": "C.UTF-8",
            "HOME": scratch,
            "TMPDIR": scratch,
            "PYTHONPATH": str(self._jobkit),
            "PYTHONDONTWRITEBYTECODE": "1",  # a job must not write to the image folder
            "CUDA_VISIBLE_DEVICES": ",".join(spec.gpus),
            JOB_ENV: str(spec.job_dir),
        }
        folders = {name: str(mount.source) for mount in spec.mounts for name in mount.variables}
        return {**base, **(spec.mps.env if spec.mps else {}), **folders, **spec.env}

    def _discard(self, handle: str) -> None:
        state = ProcessStateDir(self._state / handle)
        deadline = time.monotonic() + KILL_TIMEOUT_S
        with suppress(NoSuchContainer):
            pids = state.read_pids()
            pids.kill()
            while state.read_exit() is None and time.monotonic() < deadline:
                time.sleep(POLL_INTERVAL_S)
                pids.kill()
        _discard_state_dir(state.folder)

    async def output(self, handle: str, since: OutputCursor | None) -> AsyncGenerator[OutputChunk]:
        state = ProcessStateDir(self._state / handle)
        offsets = [int(part) for part in since.position.split(":")] if since else [0, 0]
        offset = since.offset if since else 0
        with self._watch.watch(state.folder) as changes:
            while True:
                snapshot = await asyncio.to_thread(state.read_output, (offsets[0], offsets[1]))
                is_quiet = True
                for index, (start, data) in enumerate(snapshot.output):
                    size = complete_length(data, ended=snapshot.exit is not None and len(data) < READ_BYTES)
                    if size:
                        offsets[index], offset = start + size, offset + size
                        is_quiet = False
                        cursor = OutputCursor(offset, f"{offsets[0]}:{offsets[1]}")
                        yield OutputChunk(STREAMS[index], data[:size], cursor)
                if is_quiet and snapshot.exit is not None:
                    return
                if is_quiet:
                    await changes.wait()

    async def wait(self, handle: str) -> ContainerExit:
        state = ProcessStateDir(self._state / handle)
        with self._watch.watch(state.folder) as changes:
            while True:
                exit_ = await asyncio.to_thread(state.read_exit)
                if exit_ is not None:
                    return exit_
                await changes.wait()

    async def stop(self, handle: str, grace_s: float) -> None:
        try:
            pids = await asyncio.to_thread(ProcessStateDir(self._state / handle).read_pids)
            if grace_s > 0:
                pids.terminate()
            if await self._exits_within(handle, grace_s):
                return
            deadline = time.monotonic() + KILL_TIMEOUT_S
            while time.monotonic() < deadline:
                pids.kill()  # again and again: a shim that something else has killed leaves its job to this call
                if await self._exits_within(handle, KILL_REPEAT_S):
                    return
            raise EngineError(f"{handle} survives SIGKILL: a driver may block it, and then only a reboot helps")
        except NoSuchContainer:
            return

    async def _exits_within(self, handle: str, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wait(handle)
                return True
        return False

    async def remove(self, handle: str) -> None:
        await self.stop(handle, 0)
        if (served := self._served.pop(handle, None)) is not None:
            served.close()
        await asyncio.to_thread(_discard_state_dir, self._state / handle)

    async def find(self, installation: str, host: str) -> list[FoundContainer]:
        found = await asyncio.to_thread(self._find)
        return [
            container
            for container in found
            if (container.identity.installation, container.identity.host) == (installation, host)
        ]

    def _find(self) -> list[FoundContainer]:
        folders = sorted(path.parent for path in self._state.glob("*/spec.json"))
        existing = (folder for folder in folders if not folder.name.startswith(REMOVED_PREFIX))
        return [found for folder in existing if (found := ProcessStateDir(folder).describe())]

    def _delete_leftovers(self) -> None:
        """Remove state folders that an earlier process could not remove."""
        for folder in self._state.glob(f"{REMOVED_PREFIX}*"):
            _delete_folder(folder)

    def set_injection(self, injection: GpuInjection) -> None:
        """Do nothing: a process can use every GPU of the host."""

    async def pid(self, handle: str) -> int | None:
        """Return the pid of the job's shim; None if it is gone."""
        try:
            return (await asyncio.to_thread(ProcessStateDir(self._state / handle).read_pids)).shim[0]
        except NoSuchContainer:
            return None

    async def usage(self, handle: str) -> ContainerUsage:
        return await asyncio.to_thread(self._usage, handle)

    def _usage(self, handle: str) -> ContainerUsage:
        state = ProcessStateDir(self._state / handle)
        pids = state.read_pids()
        if state.read_exit() is not None:
            raise NoSuchContainer(f"{handle} has exited")
        if pids.is_sandboxed:
            return measure_processes(pids.job[0])
        members = process_shim.find_descendants(pids.shim[0])
        return ContainerUsage(len(members), sum(map(process_shim.private_bytes, members)))

    async def probe(self) -> EngineInfo:
        if not await asyncio.to_thread(Path(f"/proc/self/task/{os.getpid()}/children").exists):
            raise EngineUnavailable("the process engine needs Linux with /proc: use Docker here")
        return EngineInfo(
            self.name,
            platform.python_version(),
            isolated=False,
            notes=(self._describe_isolation(), LIMITS_NOTE),
            isolation=PROCESS_ISOLATION if self._bubblewrap is None else SANDBOX_ISOLATION,
            has_egress=True,
        )

    def _describe_isolation(self) -> str:
        user = f"the user {self._user.name}" if self._user else f"{current_user_name()}, the runner's own user"
        if self._bubblewrap is not None:
            return f"no containers: jobs run as {user}, each in a sandbox of bubblewrap"
        return f"no containers: jobs run as {user}, with access to its files and the network; run only images you trust"


def _run_shim(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    """Run the shim. It inherits nothing of our environment."""
    argv = [sys.executable, "-I", "-S", process_shim.__file__, *arguments]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, env={})


def _discard_state_dir(folder: Path) -> None:
    """Hide the state folder from `find` at once, then remove it: a failed removal must not keep a job from ending."""
    removed = folder.with_name(REMOVED_PREFIX + folder.name)
    with suppress(FileNotFoundError):
        folder.rename(removed)
        _delete_folder(removed)


def _delete_folder(folder: Path) -> None:
    try:
        remove_tree(folder)
    except OSError as error:
        structlog.get_logger("runner").warning("folder_removal_failed", folder=str(folder), error=str(error))


def _start_shim(folder: Path) -> str:
    """Start shim and job; return "" or the reason why the job does not run."""
    result = _run_shim(str(folder))
    if result.stdout.startswith(b"running"):
        return ""
    return result.stderr.decode(errors="replace").strip() or "the shim did not start"
