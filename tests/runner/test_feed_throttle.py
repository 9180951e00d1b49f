"""The feed throttle: limited, in order, no repetition, always the last message, over any number of runner processes."""

import itertools
from datetime import UTC, datetime

import hypothesis.strategies as st
from hypothesis import given

from runner.execution.output_filters import FeedThrottle, PublishedOffsets
from schemas.container_protocol import LogLine, ParsedLine, ProgressLine
from schemas.events import JOB_LOG_LIMIT_BYTES, LOG_MESSAGE_LIMIT_BYTES, FeedMessage, LogMessage, ProgressMessage

AT = datetime(2026, 11, 21, tzinfo=UTC)

MESSAGES = st.one_of(
    st.builds(ProgressLine, st.floats(0, 1)),
    st.builds(LogLine, st.sampled_from(["stdout", "stderr"]), st.text(max_size=40)),
    st.builds(LogLine, st.just("stdout"), st.just("x" * 9000)),
)
# a message, the seconds since the one before, and whether the runner process ends after it
STEPS = st.lists(st.tuples(MESSAGES, st.floats(0, 0.4), st.booleans()), max_size=60)


def parsed(steps: list[tuple[ProgressLine | LogLine, float, bool]]) -> list[ParsedLine]:
    return [ParsedLine(step[0], 10 * (at + 1)) for at, step in enumerate(steps)]


@given(STEPS)
def test_over_any_lives_offsets_rise_and_nothing_is_lost(
    steps: list[tuple[ProgressLine | LogLine, float, bool]],
) -> None:
    """End the runner at any point; the next one reads again from the start, as from any cursor before."""
    lines = parsed(steps)
    coalescer, notes, now = FeedThrottle(1, 1, PublishedOffsets()), [], 0.0
    for at, (_, wait, dies) in enumerate(steps):
        now += wait
        coalescer.add(lines[at])
        notes += coalescer.flush(now, AT)
        if dies:
            coalescer = FeedThrottle(1, 1, coalescer.published)
            for line in lines[: at + 1]:
                coalescer.add(line)
    notes += coalescer.flush(now, AT, everything=True)
    check(notes, [message for message, _ in lines])


def check(notes: list[FeedMessage], messages: list[object]) -> None:
    for kind in (LogMessage, ProgressMessage):
        offsets = [note.position.offset for note in notes if isinstance(note, kind)]
        assert offsets == sorted(set(offsets))
    assert [note.position.offset for note in notes] == sorted(note.position.offset for note in notes)
    for stream in ("stdout", "stderr"):
        said = "".join(note.text for note in notes if isinstance(note, LogMessage) and note.stream == stream)
        assert said == "".join(f"{log.text}\n" for log in messages if isinstance(log, LogLine) and log.stream == stream)
    progress = [note.fraction for note in notes if isinstance(note, ProgressMessage)]
    given_ = [message.fraction for message in messages if isinstance(message, ProgressLine)]
    assert progress[-1:] == given_[-1:]
    assert all(len(note.text.encode()) <= LOG_MESSAGE_LIMIT_BYTES for note in notes if isinstance(note, LogMessage))


@given(STEPS)
def test_no_more_than_four_progress_notes_a_second(steps: list[tuple[ProgressLine | LogLine, float, bool]]) -> None:
    coalescer, now, said_at = FeedThrottle(1, 1, PublishedOffsets()), 0.0, []
    for line, (_, wait, _) in zip(parsed(steps), steps, strict=True):
        now += wait
        coalescer.add(line)
        said_at += [now for note in coalescer.flush(now, AT) if isinstance(note, ProgressMessage)]
    assert all(later - earlier >= 0.25 for earlier, later in itertools.pairwise(said_at))


def test_a_flood_is_cut_at_the_jobs_share() -> None:
    coalescer, said = FeedThrottle(1, 1, PublishedOffsets()), 0
    for number in range(1000):
        coalescer.add(ParsedLine(LogLine("stdout", "x" * 16_000), number + 1))
        if coalescer.has_full_chunk:
            said += sum(len(note.text) for note in coalescer.flush(0.0, AT) if isinstance(note, LogMessage))
    said += sum(len(note.text) for note in coalescer.flush(0.0, AT, everything=True) if isinstance(note, LogMessage))
    assert said == JOB_LOG_LIMIT_BYTES


def test_a_quiet_job_waits_for_nothing() -> None:
    coalescer = FeedThrottle(1, 1, PublishedOffsets())
    coalescer.add(ParsedLine(LogLine("stdout", "one"), 4))
    assert len(coalescer.flush(0.0, AT)) == 1
    coalescer.add(ParsedLine(LogLine("stdout", "two"), 8))
    assert coalescer.flush(0.1, AT) == ()
    assert not coalescer.is_empty
    assert len(coalescer.flush(0.25, AT)) == 1
    assert coalescer.is_empty
