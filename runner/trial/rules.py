"""The rules of the container contract (docs/images.md) that one trial of an image can check. Pure: a table of rules."""

from collections.abc import Callable, Mapping

from msgspec import Struct

from runner.engines.port import ContainerExit
from runner.execution.verdict import ClassifiedFailure, Verdict
from schemas.container_protocol import PARTIAL_FILE_PREFIX, ExitCode
from schemas.lifecycle import MODULE_MISSING_CODE

SHOWN_LINE_CHARS = 120
READ_ONLY_TEXTS = ("Read-only file system", "Errno 30", "EROFS")
DENIED_TEXTS = ("Permission denied", "Errno 13", "EACCES")


class TrialFacts(Struct, frozen=True, kw_only=True):
    """All that is known after a trial.

    `lines` are the lines of the job's log, `progress_count` counts its progress messages. `names` are those in out/.
    `changed` are files of the image's own folder that the job changed. `warm_problem` says why the warm container did
    not become ready. `survived_term_s`: the job still ran so many seconds after SIGTERM.
    """

    verdict: Verdict
    exit: ContainerExit | None = None
    has_error_line: bool = False
    progress_count: int = 0
    lines: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    warm_problem: str = ""
    survived_term_s: float | None = None


class BrokenRule(Struct, frozen=True):
    """A rule that the image breaks, and what to do. `rule` is a name for programs."""

    rule: str
    message: str


def _exit_code(facts: TrialFacts) -> str | None:
    code = facts.exit.code if facts.exit else ExitCode.DONE
    is_missing_module = isinstance(facts.verdict, ClassifiedFailure) and facts.verdict.code == MODULE_MISSING_CODE
    if code in set(ExitCode) or is_missing_module:
        return None
    codes = ", ".join(str(known.value) for known in ExitCode)
    return f"it ended with exit code {code}: end with one of {codes}, which say whether the job is tried again"


def _error_line(facts: TrialFacts) -> str | None:
    if facts.exit is None or facts.exit.code in {ExitCode.DONE, 1} or facts.has_error_line:
        return None
    return "it failed without an error line: print one on stdout first, or nobody learns the reason"


def _progress(facts: TrialFacts) -> str | None:
    if facts.progress_count or facts.exit is None or facts.exit.code != ExitCode.DONE:
        return None
    return "it reported no progress: print a progress line at each step, or a longer job is ended as stalled"


def _messages(facts: TrialFacts) -> str | None:
    wrong = next((line for line in facts.lines if line.startswith("{") and '"type"' in line), None)
    if wrong is None:
        return None
    return f"a line on stdout looks like a message and is not one: {wrong[:SHOWN_LINE_CHARS]}"


def _part_files(facts: TrialFacts) -> str | None:
    left = [name for name in facts.names if name.startswith(PARTIAL_FILE_PREFIX)]
    if not left or facts.exit is None or facts.exit.code != ExitCode.DONE:
        return None
    return f"it left {left[0]} in out/, which is never an output: rename the file when it is complete"


def _output(facts: TrialFacts) -> str | None:
    code = facts.verdict.code if isinstance(facts.verdict, ClassifiedFailure) else ""
    if code not in {"output_missing", "output_invalid"}:
        return None
    return "it left no usable output: write output.json or a file with a plain name into out/"


def _stop(facts: TrialFacts) -> str | None:
    if facts.survived_term_s is None:
        return None
    return (
        f"it still ran {facts.survived_term_s:.1f} s after SIGTERM and was killed: end on SIGTERM within grace_s, "
        "also while a library works"
    )


def _warm(facts: TrialFacts) -> str | None:
    if not facts.warm_problem:
        return None
    return (
        f"warm = true, and the warm container was not ready ({facts.warm_problem}): load, listen on start.sock, "
        "print the ready line"
    )


def _read_only_root(facts: TrialFacts) -> str | None:
    if facts.changed:
        return (
            f"it changed {facts.changed[0]} in its own folder, which is read-only in a container: "
            "write to the job's tmp/"
        )
    if (line := _find(facts, READ_ONLY_TEXTS)) is None:
        return None
    return f"it writes to the root, which is read-only ({line}): write to the job's tmp/ or to /tmp"


def _not_root(facts: TrialFacts) -> str | None:
    if (line := _find(facts, DENIED_TEXTS)) is None:
        return None
    return f"it needs rights of root or of another user ({line}): make its files readable for everybody"


def _find(facts: TrialFacts, texts: tuple[str, ...]) -> str | None:
    """Return the first line of a failed job that contains one of the texts."""
    if facts.exit is None or facts.exit.code == ExitCode.DONE:
        return None
    found = (line for line in facts.lines if any(text in line for text in texts))
    return next((line.strip()[:SHOWN_LINE_CHARS] for line in found), None)


RULES: Mapping[str, Callable[[TrialFacts], str | None]] = {
    "exit_code": _exit_code,
    "error_line": _error_line,
    "progress": _progress,
    "messages": _messages,
    "part_files": _part_files,
    "output": _output,
    "stop": _stop,
    "warm": _warm,
    "read_only_root": _read_only_root,
    "not_root": _not_root,
}


def find_broken_rules(facts: TrialFacts) -> tuple[BrokenRule, ...]:
    """Return every rule that the image broke."""
    return tuple(BrokenRule(name, message) for name, check in RULES.items() if (message := check(facts)))
