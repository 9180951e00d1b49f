"""States of a warm container: the table spelled out, and what follows from a state."""

import time
from pathlib import Path

import anyio
import pytest

from runner.endpoints import LocalEndpoint
from runner.execution.warm_container import WarmContainer, WarmState
from runner.gpu.allocator import GpuAllocator, GpuSettings
from schemas.endpoint import Endpoint
from tests.support.fake_gpus import FakeGpuMonitor

ALLOWED = {
    ("loading", "ready"),
    ("loading", "reserved"),
    ("loading", "removing"),
    ("ready", "assigned"),
    ("ready", "removing"),
    ("reserved", "loading"),
    ("reserved", "assigned"),
    ("reserved", "detached"),
    ("assigned", "ready"),
    ("assigned", "detached"),
    ("detached", "removing"),
    ("detached", "loading"),
    ("removing", "removed"),
}
IDLE = {"loading", "ready", "removing"}


def warm_container(handle: str | None = None) -> WarmContainer:
    allocator = GpuAllocator(FakeGpuMonitor(), GpuSettings(), time.monotonic)
    endpoint = LocalEndpoint(Endpoint(name="echo", image="echo"), Path())
    return WarmContainer("warm-1", endpoint, allocator.allocate((), endpoint.config, is_idle=handle is None), handle)


@pytest.mark.parametrize("after", WarmState)
@pytest.mark.parametrize("before", WarmState)
async def test_a_change_of_state_is_allowed_by_the_table_only(before: WarmState, after: WarmState) -> None:
    warm = warm_container()
    warm.state = before
    if (before.value, after.value) not in ALLOWED:
        with pytest.raises(RuntimeError, match=f"from {before} to {after}"):
            warm.advance(after)
        assert warm.state is before
        return
    warm.advance(after)
    assert (warm.state, warm.allocation.is_idle) == (after, after.value in IDLE)


async def test_a_container_found_with_its_job_is_not_watched() -> None:
    warm = warm_container("handle")
    assert (warm.state, warm.allocation.is_idle) == (WarmState.DETACHED, False)


async def test_a_task_waits_for_one_of_several_states() -> None:
    warm, seen = warm_container(), list[WarmState]()

    async def wait() -> None:
        await warm.wait_for(WarmState.ASSIGNED, WarmState.DETACHED)
        seen.append(warm.state)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            for state in (WarmState.RESERVED, WarmState.ASSIGNED):
                await anyio.wait_all_tasks_blocked()
                assert seen == []
                warm.advance(state)
    assert seen == [WarmState.ASSIGNED]
