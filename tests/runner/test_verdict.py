"""The verdict table by hand: every measured case, and the order of the rules."""

import errno

import pytest

from bus.interface import MessageTooLarge
from runner.assets.port import AssetError, AssetGone, NotPlainFile, SecretMissing
from runner.engines.port import ContainerExit, StartFailed
from runner.execution.job_files import InvalidJobInput, OutputRefused
from runner.execution.verdict import (
    ClassifiedFailure,
    Done,
    ExitFacts,
    JobCancelled,
    StopReason,
    blames_gpu,
    classify_exit,
    failure_of_run,
    make_failure,
    output_failure,
    result_too_large,
)
from schemas.container_protocol import ErrorLine
from schemas.lifecycle import FAILURES, RetryRule

LINE = ErrorLine("no_face", "nobody is there")

# what is known, the code it comes to
FAILING: list[tuple[str, ExitFacts, str]] = [
    ("exit 3", ExitFacts(exit=ContainerExit(3)), "internal"),
    ("host-memory OOM in PID 1", ExitFacts(exit=ContainerExit(137, oom_killed=True)), "out_of_memory"),
    ("OOM kills a child, parent exits 9", ExitFacts(exit=ContainerExit(9, oom_killed=True)), "out_of_memory"),
    (
        "OOM kills a child, parent exits 0",
        ExitFacts(exit=ContainerExit(0, oom_killed=True), has_output=True),
        "out_of_memory",
    ),
    (
        "an import of Python fails before the program can report it",
        ExitFacts(exit=ContainerExit(1), stderr_end="ModuleNotFoundError: No module named 'torch'"),
        "module_missing",
    ),
    (
        "a library of the host is missing",
        ExitFacts(exit=ContainerExit(1), stderr_end="ImportError: libcuda.so.1: cannot open shared object file"),
        "internal",
    ),
    (
        "an import fails, and the job says more",
        ExitFacts(exit=ContainerExit(1), stderr_end="ImportError: no", error_line=ErrorLine("cuda_oom", "memory")),
        "cuda_oom",
    ),
    (
        "an import failed, and the exit code says more",
        ExitFacts(exit=ContainerExit(65), stderr_end="ImportError: no"),
        "bad_input",
    ),
    ("SIGSEGV", ExitFacts(exit=ContainerExit(139)), "internal"),
    ("docker kill from outside", ExitFacts(exit=ContainerExit(137)), "internal"),
    ("stopped from outside, with init", ExitFacts(exit=ContainerExit(143)), "internal"),
    ("stopped from outside, handler exits 17", ExitFacts(exit=ContainerExit(17)), "internal"),
    ("command missing", ExitFacts(failure=StartFailed("engine_error", "no such file")), "engine_error"),
    ("GPU asked, no toolkit", ExitFacts(failure=StartFailed("gpu_unsupported", "no driver")), "gpu_unsupported"),
    ("runtime missing", ExitFacts(failure=StartFailed("gpu_unsupported", "unknown runtime")), "gpu_unsupported"),
    ("image missing", ExitFacts(failure=StartFailed("image_missing", "no such image")), "image_missing"),
    ("never started: no exit to trust", ExitFacts(has_output=True), "host_lost"),
    (
        "CUDA OOM by the job's own line",
        ExitFacts(exit=ContainerExit(1), error_line=ErrorLine("cuda_oom", "out of memory")),
        "cuda_oom",
    ),
    ("bad job", ExitFacts(exit=ContainerExit(64)), "bad_job"),
    ("bad input", ExitFacts(exit=ContainerExit(65)), "bad_input"),
    ("bad input in the image's words", ExitFacts(exit=ContainerExit(65), error_line=LINE), "no_face"),
    ("GPU not usable", ExitFacts(exit=ContainerExit(69)), "gpu_unhealthy"),
    ("internal", ExitFacts(exit=ContainerExit(70)), "internal"),
    ("try again", ExitFacts(exit=ContainerExit(75)), "internal"),
    ("exit 0 without output", ExitFacts(exit=ContainerExit(0)), "output_missing"),
    ("fell off the bus, whatever the exit", ExitFacts(exit=ContainerExit(0), xid=79, has_output=True), "gpu_lost"),
    ("GPU fault during the run", ExitFacts(exit=ContainerExit(1), xid=48), "gpu_unhealthy"),
    ("application fault: the exit code tells", ExitFacts(exit=ContainerExit(1), xid=13), "internal"),
    ("too long", ExitFacts(stop_reason=StopReason.EXECUTION_TIMEOUT, exit=ContainerExit(137)), "execution_timeout"),
    ("stalled", ExitFacts(stop_reason=StopReason.STALL, exit=ContainerExit(143)), "stalled"),
    ("drained", ExitFacts(stop_reason=StopReason.DRAIN, exit=ContainerExit(143)), "drained"),
]


@pytest.mark.parametrize(("facts", "code"), [row[1:] for row in FAILING], ids=[row[0] for row in FAILING])
def test_a_failure(facts: ExitFacts, code: str) -> None:
    verdict = classify_exit(facts)
    assert isinstance(verdict, ClassifiedFailure)
    assert verdict.code == code
    assert verdict.message
    assert verdict.failure_class == FAILURES[code]


def test_done() -> None:
    assert classify_exit(ExitFacts(exit=ContainerExit(0), has_output=True)) == Done()
    assert classify_exit(ExitFacts(exit=ContainerExit(0), xid=13, error_line=LINE, has_output=True)) == Done()


@pytest.mark.parametrize("exit_", [ContainerExit(0), ContainerExit(143), ContainerExit(137, oom_killed=True), None])
def test_our_own_intent_comes_first(exit_: ContainerExit | None) -> None:
    assert (
        classify_exit(ExitFacts(stop_reason=StopReason.CANCEL, exit=exit_, xid=79, error_line=LINE, has_output=True))
        == JobCancelled()
    )


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "the disk failed"), StartFailed("engine_error", "no")])
def test_our_own_intent_comes_before_an_error_that_ended_the_run(failure: Exception) -> None:
    assert classify_exit(ExitFacts(stop_reason=StopReason.CANCEL, failure=failure)) == JobCancelled()
    stalled = classify_exit(ExitFacts(stop_reason=StopReason.STALL, failure=failure))
    assert isinstance(stalled, ClassifiedFailure)
    assert stalled.code == "stalled"


ORDERED: list[tuple[ExitFacts, str]] = [
    (
        ExitFacts(stop_reason=StopReason.STALL, exit=ContainerExit(1, oom_killed=True), xid=79, error_line=LINE),
        "stalled",
    ),
    (
        ExitFacts(stop_reason=StopReason.DISK, exit=ContainerExit(137, oom_killed=True), disk_excess="9 MB of 8"),
        "disk_exceeded",
    ),
    (ExitFacts(exit=ContainerExit(1, oom_killed=True), xid=79, error_line=LINE), "out_of_memory"),
    (ExitFacts(failure=StartFailed("engine_error", "no"), xid=79, error_line=LINE), "engine_error"),
    (ExitFacts(exit=ContainerExit(65), xid=79, error_line=LINE), "gpu_lost"),
    (ExitFacts(xid=79), "gpu_lost"),
    (ExitFacts(exit=ContainerExit(65), error_line=LINE), "no_face"),
]


@pytest.mark.parametrize(("facts", "code"), ORDERED)
def test_the_order(facts: ExitFacts, code: str) -> None:
    verdict = classify_exit(facts)
    assert isinstance(verdict, ClassifiedFailure)
    assert verdict.code == code


@pytest.mark.parametrize(
    ("exit_code", "retry"),
    [(65, RetryRule.NEVER), (70, RetryRule.CHARGED), (75, RetryRule.CHARGED), (69, RetryRule.FREE)],
)
def test_an_images_own_code_is_classed_by_the_exit_code(exit_code: int, retry: RetryRule) -> None:
    verdict = classify_exit(
        ExitFacts(exit=ContainerExit(exit_code), error_line=ErrorLine("hand_hidden", "show the hand"))
    )
    assert isinstance(verdict, ClassifiedFailure)
    assert (verdict.code, verdict.message, verdict.failure_class.retry) == ("hand_hidden", "show the hand", retry)


@pytest.mark.parametrize("code", ["host_lost", "drained", "engine_error"])
def test_an_image_cannot_ask_for_free_attempts(code: str) -> None:
    verdict = classify_exit(ExitFacts(exit=ContainerExit(1), error_line=ErrorLine(code, "again, please")))
    assert isinstance(verdict, ClassifiedFailure)
    assert verdict.failure_class.retry is RetryRule.CHARGED


@pytest.mark.parametrize(
    ("exit_code", "message"),
    [
        (127, "the job exited with code 127"),
        (128, "the job exited with code 128"),
        (129, "the job was killed by signal 1 (exit code 129)"),
        (134, "the job was killed by SIGABRT (exit code 134)"),
        (137, "the job was killed by SIGKILL (exit code 137)"),
        (139, "the job was killed by SIGSEGV (exit code 139)"),
        (143, "the job was killed by SIGTERM (exit code 143)"),
        (192, "the job was killed by signal 64 (exit code 192)"),
        (193, "the job exited with code 193"),
    ],
)
def test_an_exit_is_described(exit_code: int, message: str) -> None:
    verdict = classify_exit(ExitFacts(exit=ContainerExit(exit_code)))
    assert isinstance(verdict, ClassifiedFailure)
    assert verdict.message == message


def test_an_error_line_without_a_message_is_described_by_the_exit() -> None:
    verdict = classify_exit(ExitFacts(exit=ContainerExit(65), error_line=ErrorLine("no_face", "")))
    assert isinstance(verdict, ClassifiedFailure)
    assert (verdict.code, verdict.message) == ("no_face", "the job exited with code 65")


def test_a_stop_for_disk_says_the_figures_and_another_stop_keeps_its_reason() -> None:
    for reason, code in ((StopReason.DISK, "disk_exceeded"), (StopReason.STALL, "stalled")):
        verdict = classify_exit(ExitFacts(stop_reason=reason, exit=ContainerExit(143), disk_excess="9 MB of 8"))
        assert isinstance(verdict, ClassifiedFailure)
        assert (verdict.code, "9 MB of 8" in verdict.message) == (code, reason is StopReason.DISK)


def test_a_stop_for_disk_whose_figures_are_unknown_is_one_for_disk() -> None:
    verdict = classify_exit(ExitFacts(stop_reason=StopReason.DISK, exit=ContainerExit(143)))
    assert isinstance(verdict, ClassifiedFailure)
    assert (verdict.code, verdict.message) == ("disk_exceeded", "the job used more disk than its endpoint's disk_mb")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (SecretMissing("the secret HF_TOKEN is not set"), "secret_missing", "the secret HF_TOKEN is not set"),
        (AssetGone("asset 12 is gone"), "asset_gone", "asset 12 is gone"),
        (InvalidJobInput("$.file is no text"), "bad_input", "$.file is no text"),
        (OSError(errno.ENOSPC, "no space"), "disk_full", "the host's disk is full"),
        (OSError(errno.EDQUOT, "over quota"), "disk_full", "the host's disk is full"),
        (OSError(errno.EACCES, "denied"), "engine_error", "denied"),
        (ValueError("a bug"), "engine_error", "a bug"),
    ],
)
def test_an_error_that_ended_the_run_is_classified(error: Exception, code: str, message: str) -> None:
    failure = failure_of_run(error)
    assert (failure.code, failure.failure_class) == (code, FAILURES[code])
    assert message in failure.message


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OutputRefused("disk_exceeded", "9 MB of 8"), "disk_exceeded"),
        (NotPlainFile("r.txt is a link"), "output_invalid"),
        (AssetError("the edge takes no file of 9 MB"), "output_too_large"),
    ],
)
def test_outputs_that_cannot_be_taken_are_classified(error: OutputRefused | AssetError, code: str) -> None:
    assert output_failure(error) == ClassifiedFailure(code, str(error), FAILURES[code])


def test_a_result_that_is_too_large_for_the_record_tells_the_remedy() -> None:
    failure = result_too_large(MessageTooLarge("9 MB of 8"))
    assert failure == make_failure("output_too_large", "9 MB of 8: write large results into files")


@pytest.mark.parametrize(
    ("code", "started", "blamed"),
    [
        ("gpu_lost", True, True),
        ("gpu_lost", False, True),
        ("cuda_oom", True, False),
        ("gpu_unsupported", True, False),
        ("gpu_unsupported", False, True),
        ("internal", True, False),
        ("internal", False, False),
    ],
)
def test_a_gpu_is_probed_after_its_own_faults_and_after_a_refused_start(code: str, started: bool, blamed: bool) -> None:
    assert blames_gpu(make_failure(code, "why"), started=started) is blamed
