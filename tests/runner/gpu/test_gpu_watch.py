"""The monitor over children that a test plays: their messages, their silence and their exits."""

import anyio
import pytest

from runner.gpu.monitor import STATE_REASONS, MonitorTiming
from schemas.gpu import (
    NVML_EXIT_CODES,
    STATE_BY_NVML_EXIT_CODE,
    GpuMonitorState,
    GpuSnapshot,
    LostGpu,
    NvmlEnding,
    NvmlMessage,
    NvmlReading,
    XidEvent,
    decode_nvml_message,
    encode_nvml_message,
)
from tests.runner.gpu.scripted_nvml import DEADLINE_S, ScriptedMonitor, ScriptedNvmlChild, run_scripted_monitor
from tests.support.gpu_samples import make_sample

HASTY = MonitorTiming(first_reading_timeout_s=0.02, reading_timeout_s=0.02, restart_backoff_s=0.5)
BOTH = NvmlReading("595.10", (make_sample(0), make_sample(1)))


async def test_a_reading_becomes_the_snapshot_with_our_time() -> None:
    child = ScriptedNvmlChild()
    child.say(BOTH)
    async with run_scripted_monitor(child) as stage:
        expected = GpuSnapshot(GpuMonitorState.OK, at=1000.0, samples=BOTH.samples, driver="595.10")
        assert stage.watch.snapshot() == expected
        assert not child.killed.is_set()
    assert child.killed.is_set()


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (40, GpuMonitorState.NONE),
        (41, GpuMonitorState.NO_DRIVER),
        (42, GpuMonitorState.MISMATCH),
        (1, GpuMonitorState.FAILED),
        (0, GpuMonitorState.FAILED),
        (-11, GpuMonitorState.FAILED),
    ],
)
async def test_the_exit_code_tells_the_state(code: int, state: GpuMonitorState) -> None:
    child = ScriptedNvmlChild()
    child.say(NvmlEnding("NVML's words"))
    child.exit(code)
    async with run_scripted_monitor(child) as stage:
        snapshot = stage.watch.snapshot()
        assert snapshot.state is state
        assert snapshot.why == f"{STATE_REASONS[state]} (NVML's words)"


async def test_a_child_that_asks_to_be_renewed_leaves_the_state_as_it_was() -> None:
    first, second = ScriptedNvmlChild(), ScriptedNvmlChild()
    first.say(BOTH)
    async with run_scripted_monitor(first) as stage:
        before = stage.watch.snapshot()
        stage.now = 1001.0
        stage.next(second)
        second.say(BOTH)
        first.exit(43)
        after = await stage.watch.wait_for_change(before)
        assert (after.state, after.at) == (GpuMonitorState.OK, 1001.0)


async def test_a_child_that_cannot_be_started_is_a_state_and_tried_again() -> None:
    child = ScriptedNvmlChild()
    child.say(BOTH)
    stage = ScriptedMonitor()
    stage.next(OSError("no memory"))
    with anyio.fail_after(DEADLINE_S):
        async with stage.watch:
            assert stage.watch.snapshot() == GpuSnapshot(
                GpuMonitorState.FAILED, why=f"{STATE_REASONS[GpuMonitorState.FAILED]} (no memory)"
            )
            stage.next(child)
            await stage.wait_for_state(GpuMonitorState.OK)
    stage.close()


async def test_garbage_on_stdout_ends_the_child() -> None:
    child = ScriptedNvmlChild()
    child.say(BOTH)
    child.say_raw(b"Segmentation fault")
    async with run_scripted_monitor(child) as stage:
        snapshot = await stage.wait_for_state(GpuMonitorState.FAILED)
        await child.killed.wait()
        assert "unreadable" in snapshot.why
        assert snapshot.samples == BOTH.samples


async def test_a_child_stuck_in_the_driver_holds_nobody_up_and_gets_no_second_beside_it() -> None:
    stuck, fresh = ScriptedNvmlChild(stuck=True), ScriptedNvmlChild()
    stuck.say(BOTH)
    async with run_scripted_monitor(stuck, HASTY) as stage:
        hung = await stage.wait_for_state(GpuMonitorState.HUNG)
        await stuck.killed.wait()
        assert hung.samples == BOTH.samples
        assert stage.pauses == []
        stage.next(fresh)
        stuck.exit(-9)  # the driver has let go
        fresh.say(BOTH)
        await stage.wait_for_state(GpuMonitorState.OK)
        assert len(stage.pauses) == 1


async def test_leaving_does_not_wait_long_for_a_stuck_child() -> None:
    stuck = ScriptedNvmlChild(stuck=True)
    stuck.say(BOTH)
    async with run_scripted_monitor(stuck):
        pass
    assert stuck.killed.is_set()


async def test_a_child_that_closes_its_pipe_and_cannot_exit_hangs() -> None:
    stuck = ScriptedNvmlChild(stuck=True)
    stuck.say(BOTH)
    stuck.close()
    async with run_scripted_monitor(stuck, HASTY) as stage:
        await stage.wait_for_state(GpuMonitorState.HUNG)
        await stuck.killed.wait()
        assert stage.watch.snapshot().why == STATE_REASONS[GpuMonitorState.HUNG]


async def test_pauses_grow_with_jitter_up_to_each_states_longest_and_a_reading_ends_them() -> None:
    failing = [ScriptedNvmlChild() for _ in range(8)]
    healthy, after = ScriptedNvmlChild(), ScriptedNvmlChild()
    for child in failing:
        child.exit(1)
    async with run_scripted_monitor(failing[0]) as stage:
        for child in failing[1:]:
            stage.next(child)
        stage.next(healthy)
        healthy.say(BOTH)
        await stage.wait_for_state(GpuMonitorState.OK)
        healthy.exit(1)
        stage.next(after)
        after.say(BOTH)
        await stage.wait_for_state(GpuMonitorState.FAILED)
        await stage.wait_for_state(GpuMonitorState.OK)
    longest = [1, 2, 4, 8, 16, 30, 30, 30, 0.5]
    assert stage.pauses == [pause * 0.75 for pause in longest]


async def test_a_gpu_that_a_new_child_no_longer_lists_is_lost_until_it_is_back() -> None:
    first, second, third = ScriptedNvmlChild(), ScriptedNvmlChild(), ScriptedNvmlChild()
    first.say(BOTH)
    async with run_scripted_monitor(first) as stage:
        stage.next(second)
        second.say(NvmlReading("595.10", (make_sample(0),)))
        first.exit(1)
        await stage.wait_for_state(GpuMonitorState.FAILED)
        missing = await stage.wait_for_state(GpuMonitorState.OK)
        assert [(gpu.uuid, gpu.index, gpu.name) for gpu in missing.lost] == [("GPU-1", 1, "A GPU")]
        assert "no longer lists" in missing.lost[0].why
        stage.next(third)
        third.say(BOTH)
        second.exit(1)
        await stage.wait_for_state(GpuMonitorState.FAILED)
        assert (await stage.wait_for_state(GpuMonitorState.OK)).lost == ()


async def test_a_gpu_that_cannot_be_opened_keeps_the_name_it_had() -> None:
    first, second = ScriptedNvmlChild(), ScriptedNvmlChild()
    first.say(BOTH)
    async with run_scripted_monitor(first) as stage:
        stage.next(second)
        second.say(
            NvmlReading("595.10", (make_sample(0),), (LostGpu("", "GPU is lost", 1), LostGpu("", "GPU is lost", 5)))
        )
        first.exit(1)
        await stage.wait_for_state(GpuMonitorState.FAILED)
        lost = (await stage.wait_for_state(GpuMonitorState.OK)).lost
        assert [(gpu.uuid, gpu.index) for gpu in lost] == [("GPU-1", 1), ("", 5)]


async def test_without_a_driver_the_known_gpus_are_lost_not_forgotten() -> None:
    child = ScriptedNvmlChild()
    child.say(BOTH)
    async with run_scripted_monitor(child) as stage:
        child.exit(NVML_EXIT_CODES[GpuMonitorState.NO_DRIVER])
        snapshot = await stage.wait_for_state(GpuMonitorState.NO_DRIVER)
        assert snapshot.samples == ()
        assert [gpu.uuid for gpu in snapshot.lost] == ["GPU-0", "GPU-1"]


async def test_events_pass_through() -> None:
    child = ScriptedNvmlChild()
    child.say(BOTH)
    async with run_scripted_monitor(child) as stage:
        with stage.watch.events() as events:
            child.say(XidEvent("GPU-0", 31, at=5.0))
            assert await events.receive() == XidEvent("GPU-0", 31, at=5.0)


def test_every_word_of_the_child_survives_the_wire() -> None:
    words: tuple[NvmlMessage, ...] = (
        NvmlReading("595.10", (make_sample(0),), (LostGpu("GPU-1", "gone", 1, "A GPU"),)),
        XidEvent("GPU-0", 79, at=1.5),
        NvmlEnding("Driver Not Loaded"),
    )
    assert [decode_nvml_message(encode_nvml_message(word).removesuffix(b"\n")) for word in words] == list(words)


def test_exit_codes() -> None:
    assert STATE_BY_NVML_EXIT_CODE == {
        40: GpuMonitorState.NONE,
        41: GpuMonitorState.NO_DRIVER,
        42: GpuMonitorState.MISMATCH,
    }
