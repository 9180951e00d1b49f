"""How an attempt ended, from what is known of it. Pure: one table, read from the top; the first row that knows decides.

The order matters (DESIGN 4). A job that we stopped exits with 137 or 143 like one that crashed, so our own intent comes
first; an OOM that killed a child hides behind the parent's exit code; a card that erred makes any exit code suspect.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum

from msgspec import Struct

from runner.engines.port import Exit, StartFailed
from runner.gpu import xid as xids
from schemas.container import EXIT_FAILURES, ErrorLine, ExitCode
from schemas.failures import DRAINED, FAILURES, Class
from schemas.words import Blame


class Intent(StrEnum):
    """Why the runner stopped a container. Written down before the stop: afterwards it looks like a crash."""

    CANCEL = "cancel"
    EXECUTION_TIMEOUT = "execution_timeout"
    STALL = "stall"
    DRAIN = "drain"
    DISK = "disk"


class Facts(Struct, frozen=True, kw_only=True):
    """All that is known. `refused`: the container did not start; `xid`: the first card fault during the run.

    `exit` is None when nothing ran to an end; `said` is the last error line; `has_output`: something lies in out/.
    `disk`: why it used too much disk, in figures, where it did.
    """

    intent: Intent | None = None
    exit: Exit | None = None
    refused: StartFailed | None = None
    xid: int | None = None
    said: ErrorLine | None = None
    has_output: bool = False
    disk: str | None = None


class Done(Struct, frozen=True):
    """It did what it was asked; the outputs are to be collected."""


class Stopped(Struct, frozen=True):
    """The owner wanted it stopped, and it is."""


class FailedAs(Struct, frozen=True):
    """It failed; `row` decides whether there is another attempt."""

    code: str
    message: str
    row: Class


Verdict = Done | Stopped | FailedAs


def failed(code: str, message: str) -> FailedAs:
    """A failure of the table, by its code."""
    return FailedAs(code, message, FAILURES[code])


# Failures of the GPU's class by which a container says nothing against the card: too large, or not made for it.
OF_THE_IMAGE = frozenset({"cuda_oom", "gpu_unsupported"})


def blames_card(verdict: FailedAs, *, started: bool) -> bool:
    """Whether the card has to prove itself before it takes more. A start that was refused is the host's affair."""
    return verdict.row.blame is Blame.GPU and not (started and verdict.code in OF_THE_IMAGE)


INTENTS: Mapping[Intent, Verdict] = {
    Intent.CANCEL: Stopped(),
    Intent.EXECUTION_TIMEOUT: failed("execution_timeout", "the job ran longer than it may: raise execution_timeout_s"),
    Intent.STALL: failed("stalled", "the job made no progress for longer than it may: raise stall_timeout_s"),
    Intent.DRAIN: failed(DRAINED, "the host is shutting down"),
    Intent.DISK: failed("disk_exceeded", "the job used more disk than its endpoint's disk_mb"),
}
OFF_THE_BUS = 79
SIGNALS = {6: "SIGABRT", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM"}


def _intended(facts: Facts) -> Verdict | None:
    if facts.intent is Intent.DISK and facts.disk is not None:
        return _overran(facts)  # with the figures
    return INTENTS[facts.intent] if facts.intent is not None else None


def _out_of_memory(facts: Facts) -> Verdict | None:
    if facts.exit is None or not facts.exit.oom_killed:
        return None
    return failed("out_of_memory", "the job needed more memory than its endpoint's memory_mb")


def _not_started(facts: Facts) -> Verdict | None:
    return failed(facts.refused.code, facts.refused.message) if facts.refused is not None else None


def _card_erred(facts: Facts) -> Verdict | None:
    """An application's fault (13, 31, …) is the job's own: its exit code tells more than the driver does."""
    if facts.xid is None or facts.xid in xids.APPLICATION:
        return None
    code = "gpu_lost" if facts.xid == OFF_THE_BUS else "gpu_unhealthy"
    return failed(code, f"the driver reported {xids.meaning(facts.xid)}")


def _vanished(facts: Facts) -> Verdict | None:
    return failed("host_lost", "the container is gone") if facts.exit is None else None


def _overran(facts: Facts) -> Verdict | None:
    """Before the exit code: a job that has no room fails in some way of its own."""
    return failed("disk_exceeded", facts.disk) if facts.disk is not None else None


def _exited(facts: Facts) -> Verdict | None:
    if facts.exit is None or facts.exit.code == ExitCode.DONE:
        return None
    code = EXIT_FAILURES.get(facts.exit.code) or "internal"
    return _as_said(facts.said, failed(code, _of_exit(facts.exit.code)))


def _silent(facts: Facts) -> Verdict | None:
    if facts.has_output:
        return None
    because = f": {facts.said.message}" if facts.said else ""
    return failed("output_missing", f"the job exited with 0 and left nothing in out/{because}")


def _done(_: Facts) -> Verdict | None:
    return Done()


ORDER: tuple[Callable[[Facts], Verdict | None], ...] = (
    _intended,
    _out_of_memory,
    _not_started,
    _card_erred,
    _vanished,
    _overran,
    _exited,
    _silent,
    _done,
)


def _of_exit(code: int) -> str:
    number = code - 128
    if 0 < number < 65:
        return f"the job was ended by {SIGNALS.get(number, f'signal {number}')} (exit code {code})"
    return f"the job exited with code {code}"


def _as_said(said: ErrorLine | None, by_exit: FailedAs) -> FailedAs:
    """The image's own words, classed by the table or by the exit code.

    The host's codes are not the image's to say: they cost no attempt, and a container would run for ever on them.
    """
    if said is None:
        return by_exit
    row = FAILURES.get(said.code)
    if row is None or row.blame is Blame.HOST:
        row = by_exit.row
    return FailedAs(said.code, said.message or by_exit.message, row)


def judge(facts: Facts) -> Verdict:
    """What to make of the attempt."""
    return next(verdict for rule in ORDER if (verdict := rule(facts)) is not None)
