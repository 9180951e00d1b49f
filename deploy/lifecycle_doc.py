"""Prints docs/lifecycle.md from the tables: `./justw docs` writes it, a test compares it."""

from schemas.events import JobEventBase
from schemas.job import FINAL_STATUSES, Status
from schemas.lifecycle import FAILURES, TRANSITIONS, TRANSITIONS_WITHOUT_INPUT

HEAD = """# The life of a job

`./justw docs` makes this page from `schemas/lifecycle.py`; a test keeps it current.

A job begins as `scheduled` (accepted, not yet ready) or `queued`. Every event is written to the job's record by one
compare-and-set.

- **The edge** writes that input arrived (`supplied`), and that the job is queued, reprioritised, expired, retried or to
  be cancelled. It also cancels a job that waits, and fails one whose input does not arrive.
- **The runner** that holds the claim writes that the job is started, adopted or released, and how it ended. Adopted: a
  new process of that runner continues with the container.
- **If the host of that runner is lost**, the edge or a runner of another host releases the attempt. When the free
  releases of the job are used up, it fails the job instead. If the job was being cancelled, the edge cancels it.

A `retry` of a failed, cancelled or expired job begins its next round. A submit over `/easy/submit` with the code of a
job that has ended also begins its next round, with the new request, even if the job succeeded
([facades.md](facades.md)). Nothing else follows a final state.
"""


def event_name(kind: type[JobEventBase]) -> str:
    """Return the event's name on the wire."""
    return str(kind.__struct_config__.tag)


def state_diagram() -> str:
    """Return a Mermaid state diagram with one arrow for each pair of states."""
    arrows: dict[tuple[Status, Status], list[str]] = {}
    for kind, steps in (*TRANSITIONS.items(), *TRANSITIONS_WITHOUT_INPUT.items()):
        for before, after in steps.items():
            arrows.setdefault((before, after), []).append(event_name(kind))
    lines = [f"  {before} --> {after}: {', '.join(names)}" for (before, after), names in arrows.items()]
    starts = ["  [*] --> scheduled: submitted", "  [*] --> queued: submitted"]
    return "\n".join(["```mermaid", "stateDiagram-v2", *starts, *lines, "```"])


def transition_table() -> str:
    """Return the Markdown table of transitions, a row for each event. A blank cell is an illegal transition."""
    named = [(event_name(kind), steps) for kind, steps in TRANSITIONS.items()]
    named += [(f"{event_name(kind)}, while it lacks input", steps) for kind, steps in TRANSITIONS_WITHOUT_INPUT.items()]
    rows = [f"| {event} | " + " | ".join(steps.get(status, "") for status in Status) + " |" for event, steps in named]
    head = (
        "| event | " + " | ".join(f"**{status}**" if status in FINAL_STATUSES else status for status in Status) + " |"
    )
    return "\n".join([head, "|---" * (len(Status) + 1) + "|", *rows])


def failure_table() -> str:
    """Return the Markdown table of failure codes: whose fault each is, and whether the job is tried again."""
    rows = [f"| `{code}` | {row.blame} | {row.retry} |" for code, row in FAILURES.items()]
    return "\n".join(["| code | blame | tried again |", "|---|---|---|", *rows])


FAILURE_WORDS = """The column "tried again" has four values. `never`: the job fails. `counted`: the attempt counts
against `max_attempts`. `once`: it counts too, and the job is tried again only if no earlier attempt was counted.
`free`: it does not count, but after three releases for GPU faults the job fails as `gpu_fault_repeated`, and after ten
of all kinds as `host_fault_repeated`. If an image reports a code that is not in the table, the job keeps it, and the
[exit code](images.md#the-program) decides whether the job is tried again."""


def document() -> str:
    """Return the whole text of docs/lifecycle.md."""
    return (
        "\n\n".join([HEAD.strip(), state_diagram(), transition_table(), "## Failures", FAILURE_WORDS, failure_table()])
        + "\n"
    )


if __name__ == "__main__":
    print(document(), end="")
