"""The verdict table by hand: every row of the measured traps (research/runner.md 1.4), and the order of DESIGN 4."""

import pytest

from runner.engines.port import Exit, StartFailed
from runner.verdict import Done, Facts, FailedAs, Intent, Stopped, judge
from schemas.container import ErrorLine
from schemas.failures import FAILURES, Retry

LINE = ErrorLine("no_face", "nobody is there")

# what is known, the code it comes to
FAILING: list[tuple[str, Facts, str]] = [
    ("exit 3", Facts(exit=Exit(3)), "internal"),
    ("host-memory OOM in PID 1", Facts(exit=Exit(137, oom_killed=True)), "out_of_memory"),
    ("OOM kills a child, parent exits 9", Facts(exit=Exit(9, oom_killed=True)), "out_of_memory"),
    ("OOM kills a child, parent exits 0", Facts(exit=Exit(0, oom_killed=True), has_output=True), "out_of_memory"),
    ("SIGSEGV", Facts(exit=Exit(139)), "internal"),
    ("docker kill from outside", Facts(exit=Exit(137)), "internal"),
    ("stopped from outside, with init", Facts(exit=Exit(143)), "internal"),
    ("stopped from outside, handler exits 17", Facts(exit=Exit(17)), "internal"),
    ("command missing", Facts(refused=StartFailed("engine_error", "no such file")), "engine_error"),
    ("GPU asked, no toolkit", Facts(refused=StartFailed("gpu_unsupported", "no driver")), "gpu_unsupported"),
    ("runtime missing", Facts(refused=StartFailed("gpu_unsupported", "unknown runtime")), "gpu_unsupported"),
    ("image missing", Facts(refused=StartFailed("image_missing", "no such image")), "image_missing"),
    ("never started: no exit to trust", Facts(has_output=True), "host_lost"),
    ("CUDA OOM by the job's own line", Facts(exit=Exit(1), said=ErrorLine("cuda_oom", "out of memory")), "cuda_oom"),
    ("bad job", Facts(exit=Exit(64)), "bad_job"),
    ("bad input", Facts(exit=Exit(65)), "bad_input"),
    ("bad input in the image's words", Facts(exit=Exit(65), said=LINE), "no_face"),
    ("GPU not usable", Facts(exit=Exit(69)), "gpu_unhealthy"),
    ("internal", Facts(exit=Exit(70)), "internal"),
    ("try again", Facts(exit=Exit(75)), "internal"),
    ("exit 0 without output", Facts(exit=Exit(0)), "output_missing"),
    ("fell off the bus, whatever the exit", Facts(exit=Exit(0), xid=79, has_output=True), "gpu_lost"),
    ("card fault during the run", Facts(exit=Exit(1), xid=48), "gpu_unhealthy"),
    ("application fault: the exit code tells", Facts(exit=Exit(1), xid=13), "internal"),
    ("too long", Facts(intent=Intent.EXECUTION_TIMEOUT, exit=Exit(137)), "execution_timeout"),
    ("stalled", Facts(intent=Intent.STALL, exit=Exit(143)), "stalled"),
    ("drained", Facts(intent=Intent.DRAIN, exit=Exit(143)), "drained"),
]


@pytest.mark.parametrize(("facts", "code"), [row[1:] for row in FAILING], ids=[row[0] for row in FAILING])
def test_a_failure(facts: Facts, code: str) -> None:
    verdict = judge(facts)
    assert isinstance(verdict, FailedAs)
    assert verdict.code == code
    assert verdict.message
    assert verdict.row == FAILURES[code]


def test_done() -> None:
    assert judge(Facts(exit=Exit(0), has_output=True)) == Done()
    assert judge(Facts(exit=Exit(0), xid=13, said=LINE, has_output=True)) == Done()


@pytest.mark.parametrize("exit_", [Exit(0), Exit(143), Exit(137, oom_killed=True), None])
def test_our_own_intent_comes_first(exit_: Exit | None) -> None:
    assert judge(Facts(intent=Intent.CANCEL, exit=exit_, xid=79, said=LINE, has_output=True)) == Stopped()


ORDERED: list[tuple[Facts, str]] = [
    (Facts(intent=Intent.STALL, exit=Exit(1, oom_killed=True), xid=79, said=LINE), "stalled"),
    (Facts(exit=Exit(1, oom_killed=True), xid=79, said=LINE), "out_of_memory"),
    (Facts(refused=StartFailed("engine_error", "no"), xid=79, said=LINE), "engine_error"),
    (Facts(exit=Exit(65), xid=79, said=LINE), "gpu_lost"),
    (Facts(exit=Exit(65), said=LINE), "no_face"),
]


@pytest.mark.parametrize(("facts", "code"), ORDERED)
def test_the_order(facts: Facts, code: str) -> None:
    verdict = judge(facts)
    assert isinstance(verdict, FailedAs)
    assert verdict.code == code


@pytest.mark.parametrize(
    ("exit_code", "retry"), [(65, Retry.NEVER), (70, Retry.COUNTED), (75, Retry.COUNTED), (69, Retry.FREE)]
)
def test_an_images_own_code_is_classed_by_the_exit_code(exit_code: int, retry: Retry) -> None:
    verdict = judge(Facts(exit=Exit(exit_code), said=ErrorLine("hand_hidden", "show the hand")))
    assert isinstance(verdict, FailedAs)
    assert (verdict.code, verdict.message, verdict.row.retry) == ("hand_hidden", "show the hand", retry)


@pytest.mark.parametrize("code", ["host_lost", "drained", "engine_error"])
def test_an_image_cannot_ask_for_free_attempts(code: str) -> None:
    verdict = judge(Facts(exit=Exit(1), said=ErrorLine(code, "again, please")))
    assert isinstance(verdict, FailedAs)
    assert verdict.row.retry is Retry.COUNTED


def test_a_signal_is_named() -> None:
    verdict = judge(Facts(exit=Exit(139)))
    assert isinstance(verdict, FailedAs)
    assert "SIGSEGV" in verdict.message
