"""Prefetch while the slots are busy: the next job's inputs arrive, its message and its record stay as they are."""

from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from bus.interface import Lane, QueueMessage
from runner.claiming.loop import ClaimLoop
from schemas.installation import Pause, endpoint_pause_key, maintenance_key
from schemas.job import Priority, Status
from tests.support.fake_engine import FakeContainer
from tests.support.runner_environment import RunnerEnvironment, wait_with_deadline, write_outputs
from tests.support.wait import wait_for


class HeldFetch:
    """Program whose first job waits until it is released; the others succeed."""

    def __init__(self) -> None:
        self.go = anyio.Event()

    async def __call__(self, box: FakeContainer) -> int:
        if box.spec.identity.job == "j1":
            await self.go.wait()
        write_outputs(box)
        return 0


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    return RunnerEnvironment(tmp_path)


async def test_the_next_jobs_inputs_come_while_the_first_runs(world: RunnerEnvironment) -> None:
    held = world.programs["held"] = HeldFetch()
    async with world.run_runner():
        first = await world.submit("held")
        await world.wait_until_running(first)
        asset = world.assets.add(b"given")
        second = await world.submit("held", "j2", input={"file": asset})

        async def fetched() -> bool:
            return world.assets.fetched == [asset.removeprefix("sha256:")]

        await wait_for(fetched)
        assert await world.event_types(second) == ["Submitted"]
        held.go.set()
        job = await world.wait_until_ended(second)
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 1)


async def test_nothing_is_prefetched_for_what_the_host_may_not_run(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.programs |= {"held": HeldFetch(), "other": HeldFetch()}
    looked_at: list[list[str]] = []
    wait_for_messages = ClaimLoop._wait_for_messages

    async def note_pools(loop: ClaimLoop, pools: list[str], timeout_s: float) -> frozenset[Lane]:
        looked_at.append(pools)
        return await wait_for_messages(loop, pools, timeout_s)

    monkeypatch.setattr(ClaimLoop, "_wait_for_messages", note_pools)

    async def wait_for_pools(*pools: str) -> None:
        async def are_looked_at() -> bool:
            return bool(looked_at) and [name for name in looked_at[-1] if name in {"held", "other"}] == list(pools)

        await wait_for(are_looked_at)

    now = datetime(2026, 11, 21, tzinfo=UTC)
    async with world.run_runner():
        await world.wait_until_running(await world.submit("held"))
        await wait_for_pools("held", "other")
        await world.edge.pauses.put(endpoint_pause_key("other"), Pause(now))
        await wait_for_pools("held")
        await world.submit("other", "j2", input={"file": world.assets.add(b"given")})
        await world.edge.pauses.put(maintenance_key("gpu-1"), Pause(now))
        await wait_for_pools()
        assert looked_at[-1] == []
    assert world.assets.fetched == []


async def test_what_cannot_be_fetched_ahead_is_the_jobs_own_affair(world: RunnerEnvironment) -> None:
    held = world.programs["held"] = HeldFetch()
    async with world.run_runner():
        first = await world.submit("held")
        await world.wait_until_running(first)
        second = await world.submit("held", "j2", input={"file": f"sha256:{'0' * 64}"})

        async def tried() -> bool:
            return bool(world.assets.fetched)

        await wait_for(tried)
        held.go.set()
        assert (await world.wait_until_ended(first)).status is Status.SUCCEEDED
        job = await world.wait_until_ended(second)
    assert job.error is not None
    assert job.error.code == "asset_gone"


async def test_a_drain_does_not_wait_for_what_is_fetched_ahead(world: RunnerEnvironment) -> None:
    world.programs["held"] = HeldFetch()
    async with world.run_runner() as runner:
        await world.wait_until_running(await world.submit("held"))
        await wait_with_deadline(runner.drained)
    assert world.assets.fetched == []


async def test_a_host_whose_job_has_ended_soon_looks_again_for_a_message_that_another_host_was_looking_at(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.pace = replace(world.pace, idle_s=3600.0, ahead_s=3600.0)
    held = world.programs["held"] = HeldFetch()
    looked_at: list[QueueMessage] = []
    wait_for_messages = ClaimLoop._wait_for_messages

    async def returned_meanwhile(loop: ClaimLoop, pools: list[str], timeout_s: float) -> frozenset[Lane]:
        """Return the message after the host has found nothing, without a wake, as a host does that prefetches."""
        if lanes := await wait_for_messages(loop, pools, 0.0):
            return lanes  # woken while it was busy
        while looked_at:
            await looked_at.pop().nak(0.0)
        return await wait_for_messages(loop, pools, timeout_s)

    monkeypatch.setattr(ClaimLoop, "_wait_for_messages", returned_meanwhile)
    async with world.run_runner():
        await world.wait_until_running(await world.submit("held"))
        second = await world.submit("held", "j2")
        message = await world.broker.connect().job_queue.fetch("held", Priority.NORMAL)
        assert message is not None
        looked_at.append(message)
        held.go.set()
        assert (await world.wait_until_ended(second)).status is Status.SUCCEEDED


async def test_a_busy_host_that_is_woken_stands_back(world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    held = world.programs["held"] = HeldFetch()
    steps: list[str] = []
    wait_for_messages, fetch_first = ClaimLoop._wait_for_messages, ClaimLoop._fetch_first

    async def wait(loop: ClaimLoop, pools: list[str], timeout_s: float) -> frozenset[Lane]:
        steps.append("wait")
        return await wait_for_messages(loop, pools, timeout_s)

    async def fetch(loop: ClaimLoop, lanes: list[Lane], wait_s: float = 0.0) -> QueueMessage | None:
        steps.append("fetch")
        return await fetch_first(loop, lanes, wait_s)

    def stand_back() -> float:
        steps.append("stand back")
        return 0.0

    world.jitter = stand_back
    async with world.run_runner():
        first = await world.submit("held")
        await world.wait_until_running(first)
        monkeypatch.setattr(ClaimLoop, "_wait_for_messages", wait)
        monkeypatch.setattr(ClaimLoop, "_fetch_first", fetch)

        async def looked_twice() -> bool:
            return steps.count("wait") > 1

        await wait_for(looked_twice)
        seen = tuple(steps)
        held.go.set()
        await world.wait_until_ended(first)
    waits = [number for number, step in enumerate(seen[:-1]) if step == "wait"]
    assert {seen[number + 1] for number in waits} == {"stand back"}


@pytest.mark.parametrize(("jitter", "share"), [(0.0, 0.5), (0.75, 1.25)])
async def test_a_busy_host_looks_after_the_configured_time_and_stands_back_for_half_to_one_and_a_half_of_it(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch, jitter: float, share: float
) -> None:
    steps: list[str | float] = []
    prefetch, wait_for_messages, sleep = ClaimLoop._prefetch, ClaimLoop._wait_for_messages, anyio.sleep

    async def note_prefetch(loop: ClaimLoop) -> None:
        steps.append("busy")
        await prefetch(loop)

    async def note_wait(loop: ClaimLoop, pools: list[str], timeout_s: float) -> frozenset[Lane]:
        lanes = await wait_for_messages(loop, pools, timeout_s)
        steps.append("waited")
        return lanes

    async def note_sleep(delay_s: float) -> None:
        steps.append(delay_s)
        await sleep(delay_s)

    async def has_stood_back() -> bool:
        return "busy" in steps and "waited" in steps[steps.index("busy") : -1]

    world.programs["held"] = HeldFetch()
    world.jitter = lambda: jitter
    async with world.run_runner():
        monkeypatch.setattr(ClaimLoop, "_prefetch", note_prefetch)
        monkeypatch.setattr(ClaimLoop, "_wait_for_messages", note_wait)
        monkeypatch.setattr(anyio, "sleep", note_sleep)
        await world.submit("held")
        await wait_for(has_stood_back)
        monkeypatch.undo()
    while_busy = steps[steps.index("busy") :]
    assert while_busy[1] == world.pace.ahead_s
    assert while_busy[while_busy.index("waited") + 1] == pytest.approx(share * world.pace.ahead_s)
