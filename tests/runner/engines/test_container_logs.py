"""Docker's log stream: frames from any chunking, and a cursor that loses and repeats nothing."""

import struct
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.engines.docker_replies import (
    PARTIAL_LINE_BYTES,
    SECOND_NS,
    LogCursor,
    LogFrame,
    LogFrameParser,
    LogStreamBroken,
    parse_timestamp_ns,
)
from runner.engines.port import OutputChunk, OutputCursor

START = 1_700_000_000 * SECOND_NS


def stamp(ns: int) -> str:
    return f"{datetime.fromtimestamp(ns // SECOND_NS, UTC):%Y-%m-%dT%H:%M:%S}.{ns % SECOND_NS:09d}Z"


def wire(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BxxxL", kind, len(payload)) + payload


def encoded(frames: list[LogFrame]) -> bytes:
    kinds = {"stdout": 1, "stderr": 2}
    return b"".join(wire(kinds[f.stream], stamp(f.ns).encode() + b" " + f.data) for f in frames)


STREAMS = st.sampled_from(["stdout", "stderr"])
# Steps of time: most lines come in a burst, some overtake each other, some come seconds later.
STEPS = st.sampled_from([0, 0, 1, 50_000, -30_000, SECOND_NS // 3, 2 * SECOND_NS, 70 * SECOND_NS])
LOGS = st.lists(st.tuples(STREAMS, STEPS, st.binary(max_size=6)), min_size=1, max_size=60)
# And the host's calendar is set forward and back meanwhile.
SET = st.sampled_from([0, SECOND_NS // 3, SECOND_NS, 2 * SECOND_NS, -40 * SECOND_NS, 40 * SECOND_NS])
LOGS_WHILE_SET = st.lists(st.tuples(STREAMS, SET, st.binary(max_size=6)), min_size=1, max_size=60)


def frames_of(log: list[tuple[str, int, bytes]]) -> list[LogFrame]:
    now, frames = START, []
    for number, (stream, step, text) in enumerate(log):
        now += step
        frames.append(LogFrame(stream, now, b"%d %s\n" % (number, text.replace(b"\n", b""))))
    return frames


@given(LOGS, st.lists(st.integers(1, 50), max_size=30))
def test_frames_come_out_of_any_chunking(log: list[tuple[str, int, bytes]], sizes: list[int]) -> None:
    frames = frames_of(log)
    data, reader, found = encoded(frames), LogFrameParser(), []
    for size in sizes:
        found += reader.feed(data[:size])
        data = data[size:]
    assert found + reader.feed(data) == frames


def asked(frames: list[LogFrame], cursor: LogCursor) -> list[LogFrame]:
    """Return what the daemon answers: the first frame from that second on, and all after it in the file, at any time.

    Source: moby daemon/logger/loggerutils/logfile.go, forwarder.Do.
    """
    since = cursor.rewind() * SECOND_NS
    return frames[next((number for number, frame in enumerate(frames) if frame.ns >= since), len(frames)) :]


def by_stream(chunks: list[OutputChunk]) -> dict[str, bytes]:
    return {name: b"".join(c.data for c in chunks if c.stream == name) for name in ("stdout", "stderr")}


@given(LOGS | LOGS_WHILE_SET, st.lists(st.integers(1, 60), max_size=6))
def test_every_mark_takes_up_exactly_there(log: list[tuple[str, int, bytes]], stops: list[int]) -> None:
    frames = frames_of(log)
    seen: list[OutputChunk] = []
    mark: OutputCursor | None = None
    for stop in [*stops, len(frames)]:
        cursor = LogCursor(mark)
        for frame in asked(frames, cursor)[:stop] if stop != len(frames) else asked(frames, cursor):
            seen += cursor.add([frame])
        seen += cursor.close()
        mark = seen[-1].cursor if seen else None
    whole = LogCursor(None)
    assert by_stream(seen) == by_stream([*whole.add(frames), *whole.close()])
    offsets = [chunk.cursor.offset for chunk in seen]
    assert offsets == sorted(set(offsets))
    assert offsets[-1] == sum(len(frame.data) for frame in frames)


@pytest.mark.parametrize("stop", range(1, 7))
def test_a_calendar_that_is_set_back_and_forward_again_doubles_no_line(stop: int) -> None:
    times = (100.0, 101.2, 41.0, 42.0, 102.5, 103.5)
    frames = [LogFrame("stdout", START + int(at * SECOND_NS), b"at %.1f\n" % at) for at in times]
    before = LogCursor(None)
    seen = [chunk for frame in frames[:stop] for chunk in before.add([frame])]
    after = LogCursor(seen[-1].cursor)
    seen += after.add(asked(frames, after))
    assert b"".join(chunk.data for chunk in seen) == b"".join(frame.data for frame in frames)


def test_what_rotation_took_is_lost_and_the_rest_is_not() -> None:
    frames = [LogFrame("stdout", START + n, b"%d\n" % n) for n in range(1000)]
    cursor = LogCursor(None)
    first = list(cursor.add(frames))
    late = [LogFrame("stdout", START + 1000 + n, b"late %d\n" % n) for n in range(3)]
    after = LogCursor(first[-1].cursor)
    after.rewind()
    rest = list(after.add(frames[900:] + late))  # 900 lines are gone from the file
    assert b"".join(chunk.data for chunk in rest) == b"late 0\nlate 1\nlate 2\n"
    assert rest[-1].cursor.offset > first[-1].cursor.offset


def test_pieces_of_a_long_line_are_one_chunk_with_its_newline() -> None:
    stamped = stamp(START).encode() + b" "
    pieces = [
        b"a" * PARTIAL_LINE_BYTES,
        b"a" * PARTIAL_LINE_BYTES,
        b"a" * 10,
    ]  # as driver `local` of 20.10 sends it: no newline
    frames = LogFrameParser().feed(b"".join(wire(1, stamped + piece) for piece in pieces) + wire(1, stamped + b"b\n"))
    cursor = LogCursor(None)
    chunks = [chunk for frame in frames for chunk in cursor.add([frame])]
    assert [chunk.data for chunk in chunks] == [b"a" * (2 * PARTIAL_LINE_BYTES + 10) + b"\n", b"b\n"]


def test_the_daemons_own_words_break_the_log() -> None:
    with pytest.raises(LogStreamBroken, match="Error grabbing logs"):
        LogFrameParser().feed(wire(3, b"Error grabbing logs: EOF"))


@pytest.mark.parametrize("zone", ["Z", "+00:00"])
def test_times_are_exact_in_every_zone(zone: str) -> None:
    assert parse_timestamp_ns(f"2023-11-14T22:13:20.123456789{zone}") == START + 123456789
    assert parse_timestamp_ns("2023-11-15T06:13:20.123456789+08:00") == START + 123456789
