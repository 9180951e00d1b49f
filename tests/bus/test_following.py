"""Where a follower resumes, and what it must not be given twice."""

from hypothesis import given
from hypothesis import strategies as st

from bus.interface import FeedItem, RecordChange
from bus.nats.feed import REMEMBERED_JOB_LIMIT, Deduplicator, FeedExtent, format_item_id, resume_sequence
from schemas.events import FeedMessage, FeedPosition, LogMessage, ProgressMessage
from tests.support.bus_samples import NOW, make_key, make_log_end, make_log_piece, make_progress

HELD = FeedExtent("abc", 5, 9)


def test_a_known_place_is_resumed_and_any_other_starts_over():
    assert [resume_sequence(f"abc-{sequence}", HELD) for sequence in range(2, 12)] == [0, 0, 4, 5, 6, 7, 8, 9, 0, 0]
    assert [
        resume_sequence(text, HELD) for text in (None, "", "abd-7", "abc-", "abc-7 ", "abc-7\n", "abc--7", "7")
    ] == [0] * 8


def test_an_empty_feed_is_resumed_at_its_end():
    assert resume_sequence("abc-9", FeedExtent("abc", 10, 9)) == 9
    assert resume_sequence("abc-8", FeedExtent("abc", 10, 9)) == 0


@given(st.text(max_size=40))
def test_no_text_breaks_it(text: str):
    assert 0 <= resume_sequence(text, HELD) <= HELD.last


@given(st.integers(0, 2**60), st.integers(0, 100), st.integers(0, 100))
def test_what_is_resumed_is_always_held(sequence: int, first: int, held: int):
    now = FeedExtent("abc", first, first + held)
    resumed = resume_sequence(format_item_id("abc", sequence), now)
    assert resumed in {0, sequence}
    assert resumed == 0 or now.first - 1 <= resumed <= now.last


def item(note: FeedMessage | None = None, revision: int | None = None, job_id: str = "one") -> FeedItem:
    change = RecordChange(revision, make_key(job_id), None) if revision is not None else None
    return FeedItem("abc-1", make_key(job_id), change=change, message=note)


def test_kinds_and_jobs_are_kept_apart():
    has = Deduplicator()
    error_line = LogMessage(FeedPosition(1, 1, 10), NOW, "stderr", "x")
    for note in (make_progress(10), make_log_piece(10), error_line, make_log_end(10)):
        assert has.accept(item(note))
        assert not has.accept(item(note))
        assert has.accept(item(note, job_id="two"))
    assert has.accept(item(revision=3))
    assert not has.accept(item(revision=3))
    assert not has.accept(item(revision=2))
    assert has.last_revision(make_key()) == 3
    assert has.last_revision(make_key("two")) == 0


def test_of_too_many_jobs_the_one_silent_for_longest_is_forgotten():
    has = Deduplicator()
    for number in range(REMEMBERED_JOB_LIMIT):
        assert has.accept(item(revision=number + 1, job_id=f"j{number}"))
    assert not has.accept(item(revision=1, job_id="j0")), "as many as are remembered"
    assert has.accept(item(revision=REMEMBERED_JOB_LIMIT + 1, job_id="new"))
    assert [has.last_revision(make_key(job_id)) for job_id in ("j0", "j1", "j2")] == [1, 0, 3]


places = st.builds(FeedPosition, st.integers(1, 3), st.integers(1, 3), st.integers(0, 30))


@given(st.lists(places), st.integers(0, 40))
def test_said_again_from_anywhere_nothing_is_given_twice_and_the_newest_always(said: list[FeedPosition], back: int):
    """A re-opening reads a tail of the past again."""
    has = Deduplicator()
    replayed = said + said[-back:] if back else said
    taken = [place for place in replayed if has.accept(item(ProgressMessage(place, NOW, 0.5)))]
    ranks = [(place.round, place.attempt, place.offset) for place in taken]
    assert ranks == sorted(set(ranks))
    assert not said or ranks[-1] == max((place.round, place.attempt, place.offset) for place in said)
