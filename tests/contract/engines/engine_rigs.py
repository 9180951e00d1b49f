"""The three engines as the contract suite uses them: make a job, start it, leave a container half created."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.docker_container_config import container_config
from runner.engines.port import (
    ContainerEngine,
    ContainerIdentity,
    ContainerLimits,
    ContainerSpec,
    OutputChunk,
    OutputCursor,
)
from runner.engines.process import ProcessEngine
from runner.engines.process_job import JobUser, ProcessSpec, ProcessStateDir, find_bubblewrap
from schemas.container_protocol import JobFile, JobTimeouts
from tests.contract.engines.programs import COMMANDS, FAKE_PROGRAMS
from tests.support.docker_images import ROOT, run_docker
from tests.support.fake_engine import FakeEngine
from tests.support.job_user import nobody, why_not_nobody

IMAGES = ROOT / "images"
INSTALLATION = "contract"
MEMORY_MB = 96
DEADLINE_S = 60.0


@dataclass(frozen=True)
class EngineRig:
    """An engine and what a test needs with it. `host` is unique to the test."""

    engine: ContainerEngine
    root: Path
    host: str
    images: dict[str, str]
    create: Callable[[ContainerSpec], Awaitable[str]]  # what a crash between create and start leaves
    another: Callable[[], AbstractAsyncContextManager[ContainerEngine]]  # the engine of the next runner process
    kind: str = ""  # which of the suite's engines it is

    def spec(self, image: str = "echo", job: str = "j", **changes: Any) -> ContainerSpec:
        """Return the spec of a job of `image` in a folder of its own."""
        spec = ContainerSpec(
            identity=ContainerIdentity(
                installation=INSTALLATION, host=self.host, owner="ann", job=job, round=1, attempt=2
            ),
            image=self.images.get(image, image),
            folder=str(IMAGES / "echo"),
            command=COMMANDS.get(image, ("python3", "main.py")),
            job_dir=self.root / job,
            limits=ContainerLimits(memory_mb=MEMORY_MB, cpus=1.0),
        )
        return msgspec.structs.replace(spec, **changes)

    async def start(self, spec: ContainerSpec, given: dict[str, Any] | None = None, **files: bytes) -> str:
        """Start the spec with `given` as its input and `files` in in/."""
        make_job_folder(spec.job_dir, given or {}, files)
        return await self.engine.start(spec)

    async def echo(self, **given: Any) -> str:
        """Start an echo job with this input."""
        return await self.start(self.spec(), given)

    async def says(self, handle: str, word: bytes, since: OutputCursor | None = None) -> OutputCursor:
        """Follow until the output contains `word`; return the cursor there."""
        async with asyncio.timeout(DEADLINE_S), aclosing(self.engine.output(handle, since)) as chunks:
            async for chunk in chunks:
                if word in chunk.data:
                    return chunk.cursor
        raise AssertionError(f"it never said {word!r}")

    async def read(self, handle: str, since: OutputCursor | None = None) -> list[OutputChunk]:
        """Return all of its output."""
        async with asyncio.timeout(DEADLINE_S):
            return [chunk async for chunk in self.engine.output(handle, since)]


def make_job_folder(folder: Path, given: dict[str, Any], files: dict[str, bytes]) -> None:
    """Write in/ and job.json as the runner does."""
    (folder / "in").mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / "in" / name).write_bytes(data)
    job = JobFile(
        id="j", owner="ann", endpoint="echo", round=1, attempt=2, input=given, timeouts=JobTimeouts(60.0, 20.0)
    )
    (folder / "job.json").write_bytes(msgspec.json.encode(job))


@asynccontextmanager
async def fake_engine_rig(root: Path, name: str) -> AsyncIterator[EngineRig]:
    async with FakeEngine(FAKE_PROGRAMS, lambda: datetime.now(UTC)) as engine:

        async def create(spec: ContainerSpec) -> str:
            return engine.create(spec).handle

        yield EngineRig(
            engine,
            root,
            name,
            {},
            create,
            lambda: FakeEngine(FAKE_PROGRAMS, lambda: datetime.now(UTC), engine.containers),
        )


def nobody_engine_rig(root: Path, name: str) -> AbstractAsyncContextManager[EngineRig]:
    """Open the process engine of a runner that is root."""
    return process_engine_rig(root, name, nobody())


def sandbox_engine_rig(root: Path, name: str) -> AbstractAsyncContextManager[EngineRig]:
    """Open the process engine that runs each job in bubblewrap, as another user where it can."""
    return process_engine_rig(root, name, None if why_not_nobody() else nobody(), find_bubblewrap())


@asynccontextmanager
async def process_engine_rig(
    root: Path, name: str, user: JobUser | None = None, bubblewrap: str | None = None
) -> AsyncIterator[EngineRig]:
    async def create(spec: ContainerSpec) -> str:
        (root / "state" / "half").mkdir(parents=True)
        kept = ProcessSpec(spec.identity, spec.command, spec.folder, {}, 1)
        ProcessStateDir(root / "state" / "half").write_spec(kept)
        return "half"

    def another() -> ProcessEngine:
        return ProcessEngine(root / "state", IMAGES / "jobkit", user, bubblewrap=bubblewrap)

    kind = "sandbox" if bubblewrap else "nobody" if user else "process"
    async with another() as engine:
        yield EngineRig(engine, root, name, {}, create, another, kind)


@asynccontextmanager
async def docker_engine_rig(root: Path, name: str, url: str, images: dict[str, str]) -> AsyncIterator[EngineRig]:
    async def create(spec: ContainerSpec) -> str:
        labels = container_config(spec, "0:0", "cdi", None)["Labels"]
        arguments = [part for label in labels.items() for part in ("--label", "=".join(label))]
        return run_docker(url, "create", *arguments, spec.image).stdout.strip()

    def another() -> DockerEngine:
        return DockerEngine(DockerSettings(base_url=url))

    async with another() as engine:
        yield EngineRig(engine, root, name, images, create, another, "docker")


def stream_text(chunks: list[OutputChunk], stream: str = "stdout") -> bytes:
    """Return the text of one stream."""
    return b"".join(chunk.data for chunk in chunks if chunk.stream == stream)


def read_result(spec: ContainerSpec) -> Any:
    """Return the job's output.json."""
    return json.loads((spec.job_dir / "out" / "output.json").read_text())
