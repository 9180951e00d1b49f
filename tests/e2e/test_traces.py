"""A job's spans, from the client's span to the record, in a receiver; and a job whose receiver is dead."""

from pathlib import Path

import pytest

from tests.support.installation import Installation, RunningInstallation, run_installation
from tests.support.otlp_receiver import OtlpReceiver, run_otlp_receiver

TRACE, OUTER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = f"00-{TRACE}-{OUTER}-01"
NOWHERE = "http://127.0.0.1:9"  # nothing listens there
PARENTS = {
    "submit": None,
    "queue": "submit",
    "wake": "queue",
    "attempt": "submit",
    **dict.fromkeys(("stage", "start", "run", "deliver", "record"), "attempt"),
}

TELLS_ITS_CONTEXT = """
import json, pathlib, os
folder = pathlib.Path(os.environ["LAMPLIGHTER_JOB"])
job = json.loads((folder / "job.json").read_text())
(folder / "out" / "output.json").write_text(json.dumps({"traceparent": job["traceparent"]}))
"""


@pytest.fixture
def teller(tmp_path: Path) -> Path:
    """An endpoint whose program answers the trace context that it finds."""
    folder = tmp_path / "endpoints" / "teller"
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(TELLS_ITS_CONTEXT)
    (folder / "endpoint.toml").write_text(
        'name = "teller"\nimage = "none"\n[input]\ntype = "object"\n[process]\ncommand = ["python3", "main.py"]\n'
    )
    for path in (tmp_path / "endpoints", folder, *folder.iterdir()):
        path.chmod(0o755)
    return folder


def home_in(folder: Path) -> Installation:
    (folder / "home").mkdir()
    return Installation(folder / "home", "process")


async def submit(running: RunningInstallation, **given: str) -> dict[str, str]:
    job = await running.ann.submit("teller", wait=True, timeout_s=60, options=given)
    assert job.output is not None
    return job.output.data


async def test_each_step_of_a_job_is_a_span_inside_the_client_s(
    tmp_path: Path, teller: Path, anyio_backend: object
) -> None:
    async with run_otlp_receiver() as receiver:
        environ = {"LAMPLIGHTER_TRACES__ENDPOINT": receiver.url}
        async with run_installation(home_in(tmp_path), [teller], **environ) as running:
            accepted = await running.ann.submit("teller", options={"traceparent": CONTEXT})
            await running.installation.start_runner(endpoints=[teller], **environ)
            done = await running.ann.wait(accepted.id)
            await check_spans(receiver, accepted.id)
            assert done.output is not None
            attempt = receiver.named("attempt")[0]
            assert done.output.data["traceparent"] == f"00-{TRACE}-{attempt.id}-01"
            assert (await submit(running))["traceparent"].split("-")[1] != TRACE
            assert (await submit(running, traceparent="nonsense"))["traceparent"].split("-")[1] != TRACE


async def check_spans(receiver: OtlpReceiver, job_id: str) -> None:
    got = await receiver.wait_for_spans(*PARENTS)
    assert {one.trace for one in got.values()} == {TRACE}
    assert {name: one.parent for name, one in got.items()} == {
        name: OUTER if parent is None else got[parent].id for name, parent in PARENTS.items()
    }
    services = {name: one.service for name, one in got.items()}
    assert services == dict.fromkeys(PARENTS, "lamplighter-runner") | {"submit": "lamplighter-edge"}
    assert got["attempt"].attributes["lamplighter.job_id"] == job_id
    assert all(one.start_ns <= one.end_ns and not one.is_failed for one in got.values())
    steps = [got[name] for name in ("stage", "start", "run", "deliver", "record")]
    assert sorted(steps, key=lambda one: one.start_ns) == steps


async def test_a_dead_receiver_stops_neither_edge_nor_runner(
    tmp_path: Path, teller: Path, anyio_backend: object
) -> None:
    environ = {"LAMPLIGHTER_TRACES__ENDPOINT": NOWHERE}
    async with run_installation(home_in(tmp_path), [teller], **environ) as running:
        await running.installation.start_runner(endpoints=[teller], **environ)
        assert (await submit(running, traceparent=CONTEXT))["traceparent"].startswith(f"00-{TRACE}-")
        await running.installation.edge.stop()
        await running.installation.clear()


async def test_without_traces_the_program_gets_the_client_s_context(
    tmp_path: Path, teller: Path, anyio_backend: object
) -> None:
    async with run_installation(home_in(tmp_path), [teller]) as running:
        await running.installation.start_runner(endpoints=[teller])
        assert await submit(running, traceparent=CONTEXT) == {"traceparent": CONTEXT}
        assert await submit(running) == {"traceparent": None}
