"""Jobs as plain child processes: the same image folders where there is no container engine. It isolates nothing.

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
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self

import structlog

from runner.engines import shim
from runner.engines.cut import whole
from runner.engines.folders import prepare
from runner.engines.port import (
    JOB_ENV,
    Chunk,
    EngineError,
    EngineGone,
    EngineInfo,
    Exit,
    Found,
    Mark,
    NoSuchContainer,
    Spec,
    StartFailed,
)
from runner.engines.records import READ, STREAMS, Kept, Records
from runner.engines.starting import started
from runner.removal import remove_tree

POLL_S = 0.02
HANG_S = 10.0  # how long a KILL may take
STARTS = 4  # at once
GONE = ".gone-"  # of the name of a state folder that is being removed
NOTES = (
    "isolates nothing: jobs run as this user, with its files and network; run only images you trust",
    "memory is watched, not fenced; CPUs, processes and disk are not limited",
)


class ProcessEngine:
    """Runs image folders; keeps its records in `state`. `jobkit` is the folder that holds the package of that name."""

    name = "process"

    def __init__(self, state: Path, jobkit: Path) -> None:
        self._state = state
        self._jobkit = jobkit
        self._pool = ThreadPoolExecutor(STARTS, thread_name_prefix="start")

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._sweep)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)  # what was cancelled is being undone there

    async def start(self, spec: Spec) -> str:
        return await started(self._pool, lambda: self._start(spec), self._discard)

    def _start(self, spec: Spec) -> str:
        if not spec.command or not Path(spec.folder).is_dir():
            raise StartFailed("image_missing", f"image {spec.image} has no folder here or no [process] command in it")
        try:
            folder = self._create(spec)
            said = _launch(folder)
        except OSError as error:
            raise StartFailed("engine_error", f"the job cannot be started: {error}") from error
        if said:
            _forget(folder)
            raise StartFailed("engine_error", said)
        return folder.name

    def _create(self, spec: Spec) -> Path:
        prepare(spec.job_dir, (os.geteuid(), os.getegid()), warm=True)
        self._state.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = Path(tempfile.mkdtemp(prefix=f"{spec.identity.job or 'warm'}-", dir=self._state))
        Records(folder).keep(
            Kept(spec.identity, spec.instead or spec.command, spec.folder, self._env(spec), spec.limits.memory_mb),
        )
        return folder

    def _env(self, spec: Spec) -> dict[str, str]:
        """Little of ours: no keys, no proxies. The runner's own Python comes first, with the packages beside it."""
        scratch = str(spec.job_dir / "tmp")
        ours = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
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
        records = Records(self._state / handle)
        deadline = time.monotonic() + HANG_S
        with suppress(NoSuchContainer):
            records.running().kill()
            while records.ended() is None and time.monotonic() < deadline:
                time.sleep(POLL_S)
        _forget(records.folder)

    async def output(self, handle: str, since: Mark | None) -> AsyncIterator[Chunk]:
        records = Records(self._state / handle)
        at = [int(part) for part in since.position.split(":")] if since else [0, 0]
        while True:
            look = await asyncio.to_thread(records.look, (at[0], at[1]))
            quiet = True
            for which, data in enumerate(look.output):
                size = whole(data, ended=look.exit is not None and len(data) < READ)
                if size:
                    at[which] += size
                    quiet = False
                    yield Chunk(STREAMS[which], data[:size], Mark(sum(at), f"{at[0]}:{at[1]}"))
            if quiet and look.exit is not None:
                return
            if quiet:
                await asyncio.sleep(POLL_S)

    async def wait(self, handle: str) -> Exit:
        records = Records(self._state / handle)
        while True:
            ended = await asyncio.to_thread(records.ended)
            if ended is not None:
                return ended
            await asyncio.sleep(POLL_S)

    async def stop(self, handle: str, grace_s: float) -> None:
        try:
            running = await asyncio.to_thread(Records(self._state / handle).running)
            if grace_s > 0:
                running.terminate()
            if await self._exits_within(handle, grace_s):
                return
            running.kill()
            if not await self._exits_within(handle, HANG_S):
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
        await asyncio.to_thread(_forget, self._state / handle)

    async def find(self, installation: str, host: str) -> list[Found]:
        found = await asyncio.to_thread(self._find)
        return [one for one in found if (one.identity.installation, one.identity.host) == (installation, host)]

    def _find(self) -> list[Found]:
        folders = sorted(path.parent for path in self._state.glob("*/spec.json"))
        there = (folder for folder in folders if not folder.name.startswith(GONE))
        return [found for folder in there if (found := Records(folder).found())]

    def _sweep(self) -> None:
        """Remove what an earlier life could not."""
        for folder in self._state.glob(f"{GONE}*"):
            _remove(folder)

    async def pid(self, handle: str) -> int | None:
        """The process whose descendants are the job's: its shim. None where it is gone."""
        try:
            return (await asyncio.to_thread(Records(self._state / handle).running)).shim[0]
        except NoSuchContainer:
            return None

    async def probe(self) -> EngineInfo:
        if not await asyncio.to_thread(Path(f"/proc/self/task/{os.getpid()}/children").exists):
            raise EngineGone("the process engine needs Linux with /proc: use Docker here")
        return EngineInfo(self.name, platform.python_version(), isolated=False, notes=NOTES)


def _forget(folder: Path) -> None:
    """Take the state folder out of `find` at once, then remove it: a removal that fails keeps no job from ending."""
    gone = folder.with_name(GONE + folder.name)
    with suppress(FileNotFoundError):
        folder.rename(gone)
        _remove(gone)


def _remove(folder: Path) -> None:
    try:
        remove_tree(folder)
    except OSError as error:
        structlog.get_logger("runner").warning("folder not removed", folder=str(folder), why=str(error))


def _launch(folder: Path) -> str:
    """Start shim and job; empty, or why it does not run."""
    shim_command = [sys.executable, "-I", "-S", shim.__file__, str(folder)]
    said = subprocess.run(shim_command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if said.stdout.startswith(b"running"):
        return ""
    return said.stderr.decode(errors="replace").strip() or "the shim did not start"
