"""Jobs as plain child processes: the same image folders where there is no container engine.

Where the runner is root a job runs as another user, and that is all that is between it and the machine.

A shim beside each job (shim.py) keeps its output and exit code in a state folder (records.py), so that the job
survives the runner and is adopted by the next one.
"""

import asyncio
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self

import msgspec
import structlog

from bus.secret_files import make_private_folder
from runner.engines import process_shim
from runner.engines.job_user import JobUser, current_user_name
from runner.engines.launch import prepare_job_dir, start_cancellable
from runner.engines.port import (
    JOB_ENV,
    WARM_ENV,
    ContainerExit,
    ContainerIdentity,
    ContainerSpec,
    EngineError,
    EngineInfo,
    EngineUnavailable,
    FoundContainer,
    NoSuchContainer,
    OutputChunk,
    OutputCursor,
    StartFailed,
    complete_length,
)
from runner.engines.process_state import READ_BYTES, STREAMS, ProcessSpec, ProcessStateDir
from runner.tree_removal import remove_tree

POLL_INTERVAL_S = 0.02
KILL_TIMEOUT_S = 10.0  # how long a KILL may take
START_LIMIT = 4  # at once
REMOVED_PREFIX = ".gone-"  # of the name of a state folder that is being removed
TRIAL_PREFIX = "warm-try-"  # a name under which runner.adopt clears it away, should this process be killed
_NO_IDENTITY = ContainerIdentity(installation="", host="")
LIMITS_NOTE = "memory and disk are watched, not fenced; CPUs and processes are not limited"
USER_REMEDY = (
    "let that user enter it, keep Python and the images where it may, "
    'or set [process] user = "" to run jobs as the runner\'s own user, who sees all that it sees'
)


class CannotRunJobs(Exception):
    """Jobs cannot run as the user that they should: the message says why and what to do."""


class ProcessEngine:
    """Runs image folders; keeps its records in `state`. `jobkit` is the folder that holds the package of that name.

    `user`: whom jobs run as, None for the runner's own user.
    """

    name = "process"

    def __init__(self, state: Path, jobkit: Path, user: JobUser | None = None) -> None:
        self._state = state
        self._jobkit = jobkit
        self._user = user
        self._pool = ThreadPoolExecutor(START_LIMIT, thread_name_prefix="start")

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._delete_leftovers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)  # what was cancelled is being undone there

    async def start(self, spec: ContainerSpec) -> str:
        return await start_cancellable(self._pool, lambda: self._start(spec), self._discard)

    def _start(self, spec: ContainerSpec) -> str:
        if not spec.command or not Path(spec.folder).is_dir():
            raise StartFailed("image_missing", f"image {spec.image} has no folder here or no [process] command in it")
        try:
            folder = self._create(spec)
            said = _start_shim(folder)
        except OSError as error:
            raise StartFailed("engine_error", f"the job cannot be started: {error}") from error
        if said:
            _discard_state_dir(folder)
            raise StartFailed("engine_error", said)
        return folder.name

    def check_job_user(self, jobs: Path, images: Iterable[Path]) -> None:
        """Start Python once as jobs will, with a way to all `images` and to a folder made in `jobs`. Blocking.

        Raises CannotRunJobs, OSError.
        """
        if self._user is None:
            return
        with tempfile.TemporaryDirectory(prefix=TRIAL_PREFIX, dir=jobs) as made:
            job_dir = Path(made)
            prepare_job_dir(job_dir, (self._user.uid, self._user.gid), warm=False)
            code = f"import json, zlib; open({str(job_dir / 'out' / 'tried')!r}, 'w').close()"
            command, env = (sys.executable, "-c", code), {"PYTHONPATH": str(self._jobkit)}
            places = self._list_job_paths([str(image) for image in images], job_dir)
            tried = ProcessSpec(_NO_IDENTITY, command, str(job_dir), env, 0, self._user, places)
            said = _run_shim(process_shim.TRIAL_FLAG, msgspec.json.encode(tried).decode())
        if said.returncode:
            lines = said.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {said.returncode}"]
            raise CannotRunJobs(f"jobs cannot run as {self._user.name}: {lines[-1]}: {USER_REMEDY}")

    def _list_job_paths(self, images: Iterable[str], job_dir: Path) -> tuple[tuple[str, bool], ...]:
        """What a job has to reach, its own folder last."""
        read = dict.fromkeys((sys.base_prefix, sys.prefix, str(self._jobkit), *images))
        return (*((path, False) for path in read), (str(job_dir), True))

    def _create(self, spec: ContainerSpec) -> Path:
        owner = (self._user.uid, self._user.gid) if self._user else (os.geteuid(), os.getegid())
        prepare_job_dir(spec.job_dir, owner, warm=spec.env.get(WARM_ENV) == "1")
        make_private_folder(self._state)
        folder = Path(tempfile.mkdtemp(prefix=f"{spec.identity.job or 'warm'}-", dir=self._state))
        command, places = spec.instead or spec.command, self._list_job_paths([spec.folder], spec.job_dir)
        ProcessStateDir(folder).write_spec(
            ProcessSpec(spec.identity, command, spec.folder, self._env(spec), spec.limits.memory_mb, self._user, places)
        )
        return folder

    @staticmethod
    def _search_path() -> str:
        """The runner's own Python comes first, with the packages beside it."""
        return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"

    def _env(self, spec: ContainerSpec) -> dict[str, str]:
        """Little of ours: no keys, no proxies."""
        scratch = str(spec.job_dir / "tmp")
        ours = {
            "PATH": self._search_path(),
            "LANG": "C.UTF-8",
            "HOME": scratch,
            "TMPDIR": scratch,
            "PYTHONPATH": str(self._jobkit),
            "PYTHONDONTWRITEBYTECODE": "1",  # the image folder is not the job's to write to
            "CUDA_VISIBLE_DEVICES": ",".join(spec.gpus),
            JOB_ENV: str(spec.job_dir),
        }
        return {**ours, **spec.env}

    def _discard(self, handle: str) -> None:
        records = ProcessStateDir(self._state / handle)
        deadline = time.monotonic() + KILL_TIMEOUT_S
        with suppress(NoSuchContainer):
            records.read_pids().kill()
            while records.read_exit() is None and time.monotonic() < deadline:
                time.sleep(POLL_INTERVAL_S)
        _discard_state_dir(records.folder)

    async def output(self, handle: str, since: OutputCursor | None) -> AsyncIterator[OutputChunk]:
        records = ProcessStateDir(self._state / handle)
        at = [int(part) for part in since.position.split(":")] if since else [0, 0]
        offset = since.offset if since else 0
        while True:
            look = await asyncio.to_thread(records.read_output, (at[0], at[1]))
            quiet = True
            for which, (start, data) in enumerate(look.output):
                size = complete_length(data, ended=look.exit is not None and len(data) < READ_BYTES)
                if size:
                    at[which], offset = start + size, offset + size
                    quiet = False
                    yield OutputChunk(STREAMS[which], data[:size], OutputCursor(offset, f"{at[0]}:{at[1]}"))
            if quiet and look.exit is not None:
                return
            if quiet:
                await asyncio.sleep(POLL_INTERVAL_S)

    async def wait(self, handle: str) -> ContainerExit:
        records = ProcessStateDir(self._state / handle)
        while True:
            ended = await asyncio.to_thread(records.read_exit)
            if ended is not None:
                return ended
            await asyncio.sleep(POLL_INTERVAL_S)

    async def stop(self, handle: str, grace_s: float) -> None:
        try:
            running = await asyncio.to_thread(ProcessStateDir(self._state / handle).read_pids)
            if grace_s > 0:
                running.terminate()
            if await self._exits_within(handle, grace_s):
                return
            running.kill()
            if not await self._exits_within(handle, KILL_TIMEOUT_S):
                raise EngineError(f"{handle} does not die: a driver may hold it, then only a reboot helps")
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
        await asyncio.to_thread(_discard_state_dir, self._state / handle)

    async def find(self, installation: str, host: str) -> list[FoundContainer]:
        found = await asyncio.to_thread(self._find)
        return [one for one in found if (one.identity.installation, one.identity.host) == (installation, host)]

    def _find(self) -> list[FoundContainer]:
        folders = sorted(path.parent for path in self._state.glob("*/spec.json"))
        there = (folder for folder in folders if not folder.name.startswith(REMOVED_PREFIX))
        return [found for folder in there if (found := ProcessStateDir(folder).describe())]

    def _delete_leftovers(self) -> None:
        """Remove what an earlier life could not."""
        for folder in self._state.glob(f"{REMOVED_PREFIX}*"):
            _delete_folder(folder)

    async def pid(self, handle: str) -> int | None:
        """The process whose descendants are the job's: its shim. None where it is gone."""
        try:
            return (await asyncio.to_thread(ProcessStateDir(self._state / handle).read_pids)).shim[0]
        except NoSuchContainer:
            return None

    async def probe(self) -> EngineInfo:
        if not await asyncio.to_thread(Path(f"/proc/self/task/{os.getpid()}/children").exists):
            raise EngineUnavailable("the process engine needs Linux with /proc: use Docker here")
        return EngineInfo(
            self.name, platform.python_version(), isolated=False, notes=(self._describe_isolation(), LIMITS_NOTE)
        )

    def _describe_isolation(self) -> str:
        who = f"the user {self._user.name}" if self._user else f"{current_user_name()}, the runner's own user"
        return f"no containers: jobs run as {who}, with its files and the network; run only images you trust"


def _run_shim(*words: str) -> "subprocess.CompletedProcess[bytes]":
    """Run it; it inherits nothing of our environment."""
    argv = [sys.executable, "-I", "-S", process_shim.__file__, *words]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, env={})


def _discard_state_dir(folder: Path) -> None:
    """Take the state folder out of `find` at once, then remove it: a removal that fails keeps no job from ending."""
    gone = folder.with_name(REMOVED_PREFIX + folder.name)
    with suppress(FileNotFoundError):
        folder.rename(gone)
        _delete_folder(gone)


def _delete_folder(folder: Path) -> None:
    try:
        remove_tree(folder)
    except OSError as error:
        structlog.get_logger("runner").warning("folder not removed", folder=str(folder), why=str(error))


def _start_shim(folder: Path) -> str:
    """Start shim and job; empty, or why it does not run."""
    said = _run_shim(str(folder))
    if said.stdout.startswith(b"running"):
        return ""
    return said.stderr.decode(errors="replace").strip() or "the shim did not start"
