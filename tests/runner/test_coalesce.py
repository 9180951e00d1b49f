"""What followers are told: thinned, in order, nothing twice, the last one always, over any number of lives."""

import itertools
from datetime import UTC, datetime

import hypothesis.strategies as st
from hypothesis import given

from runner.coalesce import Coalescer, Said
from schemas.container import Log, Parsed, Progress
from schemas.feed import LOG_JOB_BYTES, LOG_PIECE_BYTES, LogNote, Note, ProgressNote

AT = datetime(2026, 11, 21, tzinfo=UTC)

MESSAGES = st.one_of(
    st.builds(Progress, st.floats(0, 1)),
    st.builds(Log, st.sampled_from(["stdout", "stderr"]), st.text(max_size=40)),
    st.builds(Log, st.just("stdout"), st.just("x" * 9000)),
)
# a message, the seconds since the one before, and whether the life ends behind it
STEPS = st.lists(st.tuples(MESSAGES, st.floats(0, 0.4), st.booleans()), max_size=60)


def parsed(steps: list[tuple[Progress | Log, float, bool]]) -> list[Parsed]:
    return [Parsed(step[0], 10 * (at + 1)) for at, step in enumerate(steps)]


@given(STEPS)
def test_over_any_lives_offsets_rise_and_nothing_is_lost(steps: list[tuple[Progress | Log, float, bool]]) -> None:
    """A life that ends leaves what it said; the next reads again from the start, as from any mark before."""
    lines = parsed(steps)
    coalescer, notes, now = Coalescer(1, 1, Said()), [], 0.0
    for at, (_, wait, dies) in enumerate(steps):
        now += wait
        coalescer.take(lines[at])
        notes += coalescer.flush(now, AT)
        if dies:
            coalescer = Coalescer(1, 1, coalescer.said)
            for line in lines[: at + 1]:
                coalescer.take(line)
    notes += coalescer.flush(now, AT, everything=True)
    check(notes, [message for message, _ in lines])


def check(notes: list[Note], messages: list[object]) -> None:
    for kind in (LogNote, ProgressNote):
        offsets = [note.place.offset for note in notes if isinstance(note, kind)]
        assert offsets == sorted(set(offsets))
    assert [note.place.offset for note in notes] == sorted(note.place.offset for note in notes)
    for stream in ("stdout", "stderr"):
        said = "".join(note.text for note in notes if isinstance(note, LogNote) and note.stream == stream)
        assert said == "".join(f"{log.text}\n" for log in messages if isinstance(log, Log) and log.stream == stream)
    progress = [note.fraction for note in notes if isinstance(note, ProgressNote)]
    given_ = [message.fraction for message in messages if isinstance(message, Progress)]
    assert progress[-1:] == given_[-1:]
    assert all(len(note.text.encode()) <= LOG_PIECE_BYTES for note in notes if isinstance(note, LogNote))


@given(STEPS)
def test_no_more_than_four_progress_notes_a_second(steps: list[tuple[Progress | Log, float, bool]]) -> None:
    coalescer, now, said_at = Coalescer(1, 1, Said()), 0.0, []
    for line, (_, wait, _) in zip(parsed(steps), steps, strict=True):
        now += wait
        coalescer.take(line)
        said_at += [now for note in coalescer.flush(now, AT) if isinstance(note, ProgressNote)]
    assert all(later - earlier >= 0.25 for earlier, later in itertools.pairwise(said_at))


def test_a_flood_is_cut_at_the_jobs_share() -> None:
    coalescer, said = Coalescer(1, 1, Said()), 0
    for number in range(1000):
        coalescer.take(Parsed(Log("stdout", "x" * 16_000), number + 1))
        if coalescer.full:
            said += sum(len(note.text) for note in coalescer.flush(0.0, AT) if isinstance(note, LogNote))
    said += sum(len(note.text) for note in coalescer.flush(0.0, AT, everything=True) if isinstance(note, LogNote))
    assert said == LOG_JOB_BYTES


def test_a_quiet_job_waits_for_nothing() -> None:
    coalescer = Coalescer(1, 1, Said())
    coalescer.take(Parsed(Log("stdout", "one"), 4))
    assert len(coalescer.flush(0.0, AT)) == 1
    coalescer.take(Parsed(Log("stdout", "two"), 8))
    assert coalescer.flush(0.1, AT) == ()
    assert not coalescer.empty
    assert len(coalescer.flush(0.25, AT)) == 1
    assert coalescer.empty
