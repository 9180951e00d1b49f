"""Debian's Prometheus scrapes a real edge and a real runner, by the configuration of deploy/prometheus."""

import re
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx2
import pytest

from tests.e2e.conftest import process_only
from tests.support.installation import HOST, ROOT, RunningInstallation
from tests.support.prometheus_tools import find_program
from tests.support.wait import wait_for

EXAMPLE = ROOT / "deploy/prometheus/prometheus.yml"
JOBS = 3
DEADLINE_S = 60.0


def write_config(folder: Path, targets: dict[str, str], key: str) -> Path:
    """Copy the example with other targets, the rules that it includes, and the key that it names."""
    text = EXAMPLE.read_text().replace("scrape_interval: 15s", "scrape_interval: 1s")
    for old, new in targets.items():
        assert old in text
        text = text.replace(old, new)
    shutil.copytree(EXAMPLE.parent, folder)
    (folder / "metrics.key").write_text(key)
    config = folder / EXAMPLE.name
    config.write_text(text)
    return config


@asynccontextmanager
async def run_prometheus(folder: Path, config: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """Run Prometheus; yield a client of its API."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    argv = [find_program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with (folder / "prometheus.log").open("wb") as log:
        async with await anyio.open_process(
            [*argv, f"--web.listen-address={address}"], stdout=log, stderr=log
        ) as process:
            try:
                async with httpx2.AsyncClient(base_url=f"http://{address}", trust_env=False, timeout=30) as client:
                    yield client
            finally:
                process.terminate()


async def query(prometheus: httpx2.AsyncClient, expression: str) -> float | None:
    """Return the value of the only series of an expression, None while there is none."""
    try:
        reply = await prometheus.get("/api/v1/query", params={"query": expression})
    except httpx2.TransportError:
        return None  # it is starting
    if reply.status_code != httpx2.codes.OK:
        return None
    found = reply.json()["data"]["result"]
    assert len(found) <= 1, f"{expression} has {len(found)} series"
    return float(found[0]["value"][1]) if found else None


async def wait_for_value(prometheus: httpx2.AsyncClient, expression: str, value: float) -> None:
    """Wait until a scrape has brought the value."""
    last: list[float | None] = [None]

    async def is_there() -> bool:
        last[0] = await query(prometheus, expression)
        return last[0] == value

    try:
        await wait_for(is_there, timeout_s=DEADLINE_S, interval_s=0.2)
    except TimeoutError:
        pytest.fail(f"{expression} is {last[0]}, and should be {value}")


async def read_metrics_port(running: RunningInstallation) -> int:
    """Return the port that the runner has opened, from its log."""
    log = running.installation.folder / f"{HOST}.log"

    async def port() -> int | None:
        found = re.search(r'"metrics_served".*?"port": ?(\d+)|"port": ?(\d+).*?"metrics_served"', log.read_text())
        return int(found[1] or found[2]) if found else None

    return await wait_for(port, timeout_s=DEADLINE_S)


@process_only
async def test_what_prometheus_reads_is_what_happened(running: RunningInstallation, tmp_path: Path):
    installation = running.installation
    await installation.start_runner(LAMPLIGHTER_METRICS__LISTEN="0")
    for _ in range(JOBS):
        await running.ann.submit("echo", text="hello", wait=True)
    host, port = installation.edge_address
    targets = {"127.0.0.1:8000": f"{host}:{port}", "127.0.0.1:9108": f"127.0.0.1:{await read_metrics_port(running)}"}
    folder = tmp_path / "prometheus"
    config = write_config(folder, targets, installation.keys["admin"])
    async with run_prometheus(folder, config) as prometheus:
        expected = {
            'up{job="lamplighter-edge"}': 1,
            'up{job="lamplighter-runner"}': 1,
            'lamplighter_submits_total{endpoint="echo"}': JOBS,
            'lamplighter_jobs{endpoint="echo",status="succeeded"}': JOBS,
            'lamplighter_jobs_ended_total{endpoint="echo",status="succeeded"}': JOBS,
            'lamplighter_job_wait_seconds_count{endpoint="echo"}': JOBS,
            'lamplighter_job_run_seconds_count{endpoint="echo"}': JOBS,
            'lamplighter_attempts_started_total{endpoint="echo"}': JOBS,
            'lamplighter_http_requests_total{method="POST",route="/v1/jobs",status="2xx"}': JOBS,
            f'lamplighter_host_up{{host="{HOST}"}}': 1,
            f'lamplighter_host_running_jobs{{host="{HOST}"}}': 0,
            "lamplighter_edge_ready": 1,
            "lamplighter_broker_durable": 1,
            "abs(lamplighter_edge_clock_offset_seconds) < bool 60": 1,
            'lamplighter_broker_pending_messages{consumer="jobs"}': 0,
            'lamplighter_runner_attempts_total{endpoint="echo"}': JOBS,
            "lamplighter_runner_engine_start_duration_seconds_count": JOBS,
            f'lamplighter_runner_info{{host="{HOST}",engine="process"}}': 1,
            'process_resident_memory_bytes{job="lamplighter-runner"} > bool 1e6': 1,
        }
        for expression, value in expected.items():
            await wait_for_value(prometheus, expression, value)


@process_only
async def test_the_runner_listens_nowhere_unless_it_is_told_to(running: RunningInstallation):
    await running.installation.start_runner()
    await running.ann.submit("echo", text="hello", wait=True)
    assert "metrics_served" not in (running.installation.folder / f"{HOST}.log").read_text()


@process_only
async def test_an_address_that_is_taken_ends_the_runner_with_a_line(running: RunningInstallation):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = await running.installation.start_runner(LAMPLIGHTER_METRICS__LISTEN=str(port))
        with anyio.fail_after(DEADLINE_S):
            await process.wait_until_ended()
    log = (running.installation.folder / f"{HOST}.log").read_text()
    assert f"127.0.0.1 port {port} cannot be opened" in log
    assert "metrics.listen" in log
