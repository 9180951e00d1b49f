"""A whole installation for a bench: real broker, edge and runner processes, and the image of its jobs."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import msgspec
from msgspec import Struct

from bench.figures import Figure
from bench.processor import process_cpu_s
from lamplighter import AsyncClient, api
from schemas.job import WAITING_STATUSES, Job, Status, WaitReason
from schemas.job_view import JobView
from tests.support.installation import IMAGES, ROOT, Installation, wait_until_ready
from tests.support.stored_jobs import store_jobs
from tests.support.wait import wait_for

IMAGE = "lamplighter-echo"
START_TIMEOUT_S = 20.0  # for a job that can start at once: a cold container takes 0.2 s
LOG_TAIL_BYTES = 300
FIXES: Mapping[str, str] = {
    WaitReason.IMAGE_MISSING: "build the image that its endpoint.toml names, as docs/images.md shows",
    WaitReason.HOST_OFF: "no runner sends heartbeats: read the end of its log",
    WaitReason.DISK_SHORT: "free space on the disk of this machine, or set TMPDIR to a larger one",
}
DEFAULT_FIX = "read the end of the host's log, and run `lamplighter doctor` where a host runs"

OWNERS = 100
METRICS = api.ApiRequest(method="GET", path="/metrics", read=api.decode_text)


class BenchInstallation(Struct, frozen=True):
    """A running installation, a client of it, and its keys."""

    installation: Installation
    client: AsyncClient
    key: str
    admin: str

    @property
    def port(self) -> int:
        """The edge's port on the loopback interface."""
        return int(self.installation.url.rsplit(":", 1)[1])

    def edge_cpu_s(self) -> float:
        """Return the processor time of the edge so far."""
        return process_cpu_s(self.installation.edge.pid)


@asynccontextmanager
async def run_installation(engine: str = "process", **edge: str) -> AsyncIterator[BenchInstallation]:
    """Yield an installation with a ready edge, which has `edge` in its environment. The caller starts runners.

    The broker syncs every write, as in production. With Docker, the image of echo is built first. Raises SystemExit if
    the build fails.
    """
    if engine == "docker":
        await anyio.to_thread.run_sync(build_echo_image)
    url = os.environ.get("DOCKER_HOST") if engine == "docker" else None
    with tempfile.TemporaryDirectory() as folder:
        installation = Installation(Path(folder), engine, url)
        keys = await installation.open()
        try:
            await installation.start_edge(**{"LAMPLIGHTER_RECONCILE_EVERY_S": "15", **edge})  # type: ignore[arg-type]  # no key is `endpoints`
            async with AsyncClient(installation.url, keys["ann"], cache=Path(folder) / "digests.json") as client:
                await wait_until_ready(client)
                yield BenchInstallation(installation, client, keys["ann"], keys["admin"])
        finally:
            await installation.close()


def build_echo_image() -> None:
    """Build the image of echo, and its base image if it is missing. Raises SystemExit with the reason."""
    print(f"bench: building {IMAGE}", file=sys.stderr)
    dockerfile = str(IMAGES / "echo" / "Dockerfile")
    for argv in (
        [str(ROOT / "deploy" / "docker" / "base.sh")],
        ["docker", "build", "--quiet", "--tag", IMAGE, "--file", dockerfile, str(IMAGES)],
    ):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()[-1]
            raise SystemExit(f"bench: {IMAGE} cannot be built: {last} (or unset DOCKER_HOST to leave Docker out)")


async def wait_until_succeeded(made: BenchInstallation, job_id: str) -> JobView:
    """Return the job once it has succeeded.

    Raises SystemExit with reason and fix if the job has not run after START_TIMEOUT_S.
    """
    while True:
        with anyio.move_on_after(START_TIMEOUT_S):
            return await made.client.wait(job_id)
        job = await made.client.job(job_id)
        if job.status in WAITING_STATUSES:
            break  # else it runs, or an attempt is just being started
    why, said = await _last_attempt_error(made, job_id) or (str(job.reason), job.message)
    what = f"job {job_id} of {job.endpoint} has not run after {START_TIMEOUT_S:g} s"
    raise SystemExit(f"bench: {what} ({why}: {said}): {FIXES.get(why, DEFAULT_FIX)}{_last_log_errors(made)}")


async def _last_attempt_error(made: BenchInstallation, job_id: str) -> tuple[str, str] | None:
    """Return code and message of the last released attempt.

    The job's own reason then only says that it waits for a retry.
    """
    rows = await made.client.call(api.get_json(api.job_path(job_id, "history")))
    tries = [row["event"] for row in rows if row["event"]["type"] == "released"]
    return (tries[-1]["code"], tries[-1]["message"]) if tries else None


async def wait_or_exit(
    made: BenchInstallation, condition: Callable[[], Coroutine[Any, Any, Any]], what: str, *, interval_s: float = 0.05
) -> Any:
    """Return the result of `condition` once it is true. Raises SystemExit that names `what` after START_TIMEOUT_S."""
    try:
        return await wait_for(condition, timeout_s=START_TIMEOUT_S, interval_s=interval_s)
    except TimeoutError:
        raise SystemExit(
            f"bench: {what} not there after {START_TIMEOUT_S:g} s: {DEFAULT_FIX}{_last_log_errors(made)}"
        ) from None


def _last_log_errors(made: BenchInstallation) -> str:
    """Return the last warning or error in the log of each host."""
    return "".join(f"; {host}: {_last_log_error(process.log)}" for host, process in made.installation.runners.items())


def _last_log_error(log: Path) -> str:
    for line in reversed(log.read_text(errors="replace").splitlines()):
        try:
            event = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.DecodeError, msgspec.ValidationError):
            return line[:LOG_TAIL_BYTES]  # a process that crashes writes plain lines
        if event.get("level") in {"warning", "error", "critical"}:
            return line[:LOG_TAIL_BYTES]
    return "no warning in its log"


def make_job(number: int, **fields: Any) -> Job:
    """Return a job of `echo`. Its owner is one of OWNERS if `fields` names none."""
    given = {"owner": f"owner-{number % OWNERS}", **fields}
    return Job(
        id=f"job-{number}",
        endpoint="echo",
        pool="echo",
        request_digest=f"{number:064x}",
        created_at=datetime.now(UTC),
        **given,
    )


async def create_jobs(made: BenchInstallation, jobs: Iterable[Job]) -> None:
    """Write the records of `jobs` as submits would, and return when the edge's index has them."""
    wanted: Counter[Status] = Counter()

    def counted() -> Iterator[Job]:
        for job in jobs:
            wanted[job.status] += 1
            yield job

    async with made.installation.bus() as bus:
        await store_jobs(bus, counted())

    async with AsyncClient(made.installation.url, made.admin) as admin:  # an owner's key would show only its own jobs

        async def taken_over() -> bool:
            text = await admin.call(METRICS)
            return all(_parse_job_count(text, status) >= count for status, count in wanted.items())

        await wait_for(taken_over, timeout_s=600, interval_s=0.5)


def _parse_job_count(metrics: str, status: Status) -> float:
    """Return the number of the edge's jobs in that status."""
    rows = (line.rsplit(" ", 1) for line in metrics.splitlines() if f'status="{status}"' in line)
    return sum(float(value) for _, value in rows)


def docker_missing_figure(bench: str) -> Figure | None:
    """Return a figure that says why a bench skips Docker; None if a Docker engine is configured."""
    if "DOCKER_HOST" in os.environ and shutil.which("docker"):
        return None
    return Figure(bench, "docker", 0, "runs", note="skipped: no DOCKER_HOST")
