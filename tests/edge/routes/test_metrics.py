"""`/metrics` of the edge: what is counted, what is read, who may see it, and how many series there can be."""

from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from edge.core.installation import record_backup
from edge.core.metrics import EdgeMetrics, MetricsSettings
from edge.index.index import JobIndex
from edge.record_metrics import JobMetrics
from edge.server.certificate import CERTIFICATE_LIFETIME, load_or_create_certificate
from schemas import events as e
from schemas.gpu import GpuHealthStatus
from schemas.host import GpuReport, RunningExecution
from schemas.job import FINAL_STATUSES, AttemptUsage, Claim, Output
from schemas.lifecycle import make_job_failure
from schemas.metrics import METRICS
from tests.support.edge_services import START
from tests.support.metric_samples import Series, parse_samples, series_of
from tests.support.prometheus_tools import find_program
from tests.support.served_edge import PRICE, ServedEdge, serve_edge
from tests.support.wait import wait_for

ODD_METHODS = ("PROPFIND", "MKCOL", "LOCK", "REPORT", "SEARCH")
ECHO = {"endpoint": "echo", "input": {"text": "hi"}}


async def scrape(edge: ServedEdge) -> dict[Series, float]:
    reply = await edge.admin.get("/metrics")
    assert reply.status_code == 200, reply.text
    return parse_samples(reply.text)


async def test_submits_replays_and_refusals_are_counted(edge: ServedEdge):
    for job_id in ("one", "two", "two"):
        assert (await edge.ann.put(f"/v1/jobs/{job_id}", json=ECHO)).status_code in {200, 202}
    other = {"endpoint": "echo", "input": {"text": "other"}}
    assert (await edge.ann.put("/v1/jobs/two", json=other)).json()["code"] == "conflict"
    assert (await edge.ann.post("/v1/jobs", json={**ECHO, "endpoint": "none"})).json()["code"] == "endpoint_unknown"
    found = await scrape(edge)
    assert found["lamplighter_submits_total", "echo"] == 2
    assert found["lamplighter_owner_submits_total", "ann"] == 2
    assert found["lamplighter_submit_replays_total", "echo"] == 1
    assert series_of(found, "lamplighter_submit_refusals_total") == {("conflict",): 1, ("endpoint_unknown",): 1}


async def test_waits_runs_and_ends_are_counted_once_for_each_round(edge: ServedEdge):
    world = edge.world
    job = await world.submit()
    world.time.advance(seconds=30)
    await world.start(job)
    await world.write_event(job.key, e.AttemptReleased("host_lost"))
    running = await world.start(job)
    assert running.claim is not None
    await world.write_event(job.key, e.Adopted(Claim("gpu-1", "i2", running.attempt, "GPU-1,GPU-2"), running.round))
    usage = AttemptUsage(run_s=4.0, gpu_energy_j=250.0)
    await world.write_event(job.key, e.Succeeded(Output(), usage=usage))
    failing = await world.submit(text="second")
    await world.start(failing)
    await world.write_event(failing.key, e.Failed(make_job_failure("no_face", "no face")))
    await world.write_event(failing.key, e.Retried())
    await world.start(failing)
    odd = await world.read(failing)
    broken = make_job_failure("internal", "broken")
    await world.write_event(odd.key, e.Failed(type(broken)("my_own_code", "broken", "image", retryable=False)))
    found = await scrape(edge)
    waits = "lamplighter_job_wait_seconds"
    assert (found[f"{waits}_count", "echo"], round(found[f"{waits}_sum", "echo"])) == (3, 30)
    assert found["lamplighter_job_run_seconds_count", "echo"] == 1
    assert found["lamplighter_job_run_seconds_sum", "echo"] == 4
    ends = series_of(found, "lamplighter_jobs_ended_total")
    assert ends == {("echo", "succeeded"): 1, ("echo", "failed"): 2}
    assert {status for _, status in ends} <= FINAL_STATUSES
    assert series_of(found, "lamplighter_job_failures_total") == {("no_face",): 1, ("other",): 1}
    assert found["lamplighter_attempts_started_total", "echo"] == 4
    assert found["lamplighter_attempts_released_total", "host_lost"] == 1
    assert found["lamplighter_attempts_adopted_total", "echo"] == 1
    assert found["lamplighter_job_gpu_seconds_total", "echo"] == 8
    assert found["lamplighter_owner_gpu_seconds_total", "ann"] == 8
    assert found["lamplighter_job_gpu_energy_joules_total", "echo"] == 250


async def test_the_queue_hosts_and_their_power_are_read(edge: ServedEdge):
    world = edge.world
    await world.submit()
    await world.wait_until_indexed()
    await edge.services.power.tick()
    world.time.advance(hours=1)
    gpus = tuple(GpuReport(f"GPU-{status}", "A GPU", fitness=status) for status in GpuHealthStatus)
    running = (RunningExecution("ann", "one", "echo", 1, 1),)
    await world.send_heartbeat(gpus=gpus, running=running)
    found = await scrape(edge)
    assert found["lamplighter_jobs", "echo", "queued"] == found["lamplighter_owner_jobs", "ann", "queued"] == 1
    assert round(found["lamplighter_queue_oldest_wait_seconds", "echo"]) == 3600
    assert series_of(found, "lamplighter_host_up") == {("gpu-1",): 1, ("gpu-9",): 0}
    assert found["lamplighter_host_busy", "gpu-1"] == found["lamplighter_host_running_jobs", "gpu-1"] == 1
    assert round(found["lamplighter_host_heartbeat_age_seconds", "gpu-1"]) == 0
    assert found["lamplighter_host_gpus", "gpu-1", "unhealthy"] == 1
    states = series_of(found, "lamplighter_host_power_state")
    assert [state for (_, state), value in states.items() if value] == ["waking"]
    assert found["lamplighter_host_idle_limit_seconds", "gpu-9"] == 900
    assert round(found["lamplighter_host_on_seconds_total", "gpu-9"]) == 3600
    assert round(found["lamplighter_host_cost_total", "gpu-9", "CNY"], 3) == PRICE.per_hour
    assert series_of(found, "lamplighter_host_override") == {("gpu-9", "on"): 0, ("gpu-9", "off"): 0}


async def test_the_broker_is_read_and_the_rest_is_answered_without_it(edge: ServedEdge):
    at = edge.world.time()
    await record_backup(edge.world.bus.installation_constants, at)
    found = await scrape(edge)
    assert found["lamplighter_broker_connected",] == found["lamplighter_broker_durable",] == 1
    assert found["lamplighter_broker_store_used_ratio",] == found["lamplighter_webhook_outbox_deliveries",] == 0
    assert found["lamplighter_backup_last_success_timestamp_seconds",] == at.timestamp()
    assert found["lamplighter_edge_ready",] == 1
    assert found["lamplighter_edge_disk_size_bytes",] > found["lamplighter_edge_disk_free_bytes",] > 0
    edge.world.bus.health.cut()
    with pytest.raises(KeyError):
        _ = (await scrape(edge))["lamplighter_broker_durable",]
    found = await scrape(edge)
    assert found["lamplighter_broker_connected",] == found["lamplighter_edge_ready",] == 0


async def test_the_end_of_a_certificate_is_read_again_after_a_renewal(tmp_path: Path):
    now = START
    files = load_or_create_certificate(tmp_path / "tls", ["gpu.example.com"], now)
    async with serve_edge(tmp_path, certificates={"edge": files.cert, "broker": tmp_path / "none.pem"}) as edge:
        name = "lamplighter_certificate_expiry_timestamp_seconds"
        assert series_of(await scrape(edge), name) == {("edge",): (now + CERTIFICATE_LIFETIME).timestamp()}
        files.cert.unlink()
        load_or_create_certificate(tmp_path / "tls", ["gpu.example.com"], now + timedelta(days=9))
        renewed = now + timedelta(days=9) + CERTIFICATE_LIFETIME
        assert series_of(await scrape(edge), name) == {("edge",): renewed.timestamp()}


async def test_requests_are_counted_by_their_route_and_streams_while_they_are_open(edge: ServedEdge):
    await edge.ann.put("/v1/jobs/one", json=ECHO)
    for path in ("/v1/jobs/one", "/v1/jobs/none", "/v1/jobs/one/history"):
        await edge.ann.get(path)
    await edge.anyone.get("/v1/jobs/one")
    async with edge.ann.stream("GET", "/v1/events"):
        found = await scrape(edge)
        assert found["lamplighter_open_streams", "sse"] == 1
    requests = series_of(found, "lamplighter_http_requests_total")
    assert requests["GET", "/v1/jobs/{job_id}", "2xx"] == 1
    assert requests["GET", "/v1/jobs/{job_id}", "4xx"] == 2
    assert requests["PUT", "/v1/jobs/{job_id}", "2xx"] == 1
    assert requests["GET", "/v1/events", "2xx"] == 1
    assert found["lamplighter_http_request_duration_seconds_count", "/v1/jobs/{job_id}"] == 4
    assert series_of(found, "lamplighter_http_refusals_total") == {("not_found",): 1, ("unauthorized",): 1}

    async def is_closed() -> bool:
        return (await scrape(edge))["lamplighter_open_streams", "sse"] == 0

    await wait_for(is_closed)


async def test_thousands_of_odd_values_make_few_series(edge: ServedEdge):
    before = len(await scrape(edge))
    async with anyio.create_task_group() as tasks:
        for client in range(10):
            tasks.start_soon(ask_for_odd_things, edge, client)
    found = await scrape(edge)
    requests = series_of(found, "lamplighter_http_requests_total")
    assert requests["GET", "other", "4xx"] == 1000
    assert requests["other", "other", "4xx"] == 100
    assert found["lamplighter_submit_refusals_total", "endpoint_unknown"] == 1000
    assert found["lamplighter_http_requests_total", "GET", "/v1/jobs/{job_id}", "4xx"] == 1000
    assert len(found) < before + 100


async def ask_for_odd_things(edge: ServedEdge, client: int) -> None:
    for number in range(100):
        name = f"odd-{client}-{number}"
        await edge.ann.get(f"/{name}")
        await edge.ann.get(f"/v1/jobs/{name}")
        await edge.ann.post("/v1/jobs", json={"endpoint": name, "input": {}})
        if number % 10 == 0:
            await edge.ann.request(ODD_METHODS[number // 10 % len(ODD_METHODS)], f"/{name}")


async def test_an_ordinary_key_sees_its_own_jobs_hosts_and_the_store_and_nothing_else(edge: ServedEdge):
    await edge.bob.put("/v1/jobs/mine", json=ECHO)
    await edge.world.wait_until_indexed()
    allowed = {metric.name for metric in METRICS if metric.for_all_keys}
    assert allowed == {"lamplighter_jobs", "lamplighter_hosts", "lamplighter_broker_store_used_ratio"}
    of_bob = parse_samples((await edge.bob.get("/metrics")).text)
    of_ann = parse_samples((await edge.ann.get("/metrics")).text)
    assert {series[0] for series in of_bob} <= allowed
    assert of_bob["lamplighter_jobs", "echo", "queued"] == 1
    assert not series_of(of_ann, "lamplighter_jobs")
    assert (await edge.anyone.get("/metrics")).status_code == 401


async def test_promtool_finds_nothing_to_complain_of(edge: ServedEdge):
    await edge.ann.put("/v1/jobs/one", json=ECHO)
    text = (await edge.admin.get("/metrics")).content
    checked = await anyio.run_process([find_program("promtool"), "check", "metrics"], input=text, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


async def test_what_was_stored_before_the_start_is_not_counted(edge: ServedEdge):
    world = edge.world
    await world.finish(await world.submit())
    metrics = EdgeMetrics(MetricsSettings())
    index = JobIndex(world.folder / "second.db", world.bus.job_store)
    JobMetrics(index, metrics)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(index.run)
        await index.wait_until_caught_up()
        done = await world.finish(await world.submit(text="second"))
        entry = await world.bus.job_store.read(done.key)
        assert entry is not None
        assert await index.wait_for_revision(entry.revision)
        tasks.cancel_scope.cancel()
    found = parse_samples(metrics.registry.render(metrics.registry.snapshot()).decode())
    assert found["lamplighter_jobs_ended_total", "echo", "succeeded"] == 1
    assert found["lamplighter_attempts_started_total", "echo"] == 1
