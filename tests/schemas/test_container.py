"""The container contract: every line means one thing, however the bytes arrive."""

import itertools
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.container_protocol import (
    COUNT_LIMIT,
    ERROR_MESSAGE_LIMIT_CHARS,
    EXIT_FAILURES,
    LINE_LIMIT_BYTES,
    WORD_LIMIT_CHARS,
    ErrorLine,
    JobFile,
    JobTimeouts,
    LineParser,
    LogLine,
    MetricLine,
    ParsedLine,
    ProgressLine,
    ReadyLine,
    read_line,
)
from schemas.lifecycle import FAILURES

SPELLED = {
    b'{"type":"ready"}': ReadyLine(),
    b'{"type":"progress","fraction":0.42,"stage":"render","done":105,"total":250}': ProgressLine(
        0.42, "render", 105, 250
    ),
    b'{"type":"progress","fraction":1}': ProgressLine(1.0),
    b'{"type":"progress","fraction":7.5}': ProgressLine(1.0),
    b'{"type":"progress","fraction":-3}': ProgressLine(0.0),
    b'{"type":"progress","done":1,"total":4}': ProgressLine(0.25, None, 1, 4),
    b'{"type":"progress","fraction":0.5,"done":3.0,"total":-1}': ProgressLine(0.5, None, 3, 0),
    b'  {"type":"metric","name":"fps","value":24.5,"unit":"1/s"}\r': MetricLine("fps", 24.5, "1/s"),
    b'{"type":"metric","name":"frames","value":3,"new":1}': MetricLine("frames", 3.0),
    b'{"type":"error","code":"no_face","message":"no face in frame 0"}': ErrorLine("no_face", "no face in frame 0"),
    b'{"type":"error","code":"no_face"}': ErrorLine("no_face", ""),
    b'{"type":"error","code":"no_face","message":"\xc3\xbb"}': ErrorLine("no_face", "\u00fb"),
    b'{"type":"error","code":"no_face","message":"\xce\xde"}': ErrorLine("no_face", "\ufffd\ufffd"),  # GBK
    b'{"type":"progress","fraction":0,"done":1e300}': ProgressLine(0.0, None, COUNT_LIMIT),
}
LOGS = [
    b"hello",
    b"",
    b"{",
    b"[1]",
    b'{"type":"progress"}',
    b'{"type":"progress","fraction":NaN}',
    b'{"type":"progress","fraction":1e999}',
    b'{"type":"progress","fraction":"0.5"}',
    b'{"type":"progress","done":1,"total":0}',
    b'{"type":"metric","name":"","value":1}',
    b'{"type":"metric","name":"x","value":Infinity}',
    b'{"type":"error","code":"No Face","message":"x"}',
    b'{"type":"error","code":"no_face\\n","message":"x"}',
    b'{"type":"log","text":"x"}',
    b'{"type":"result"}',
    b'{"fraction":0.5}',
    b'{"type":"ready"}{"type":"ready"}',
    b'{"type":"progress","fraction":0.5,"more":' + b"[" * 60_000,
    b'{"type":"\xff"}',
    b"\xff\xfe{",
]


@pytest.mark.parametrize(("line", "message"), SPELLED.items())
def test_line_means(line: bytes, message: object) -> None:
    assert read_line("stdout", line) == message


@pytest.mark.parametrize("line", LOGS)
def test_everything_else_is_log(line: bytes) -> None:
    assert read_line("stdout", line) == LogLine("stdout", line.decode(errors="replace"))


def test_stderr_is_always_log() -> None:
    assert read_line("stderr", b'{"type":"ready"}') == LogLine("stderr", '{"type":"ready"}')


def test_words_are_cut_not_refused() -> None:
    stage = json.dumps({"type": "progress", "fraction": 0, "stage": "s" * 999}).encode()
    error = json.dumps({"type": "error", "code": "x", "message": "m" * 9999}).encode()
    assert read_line("stdout", stage) == ProgressLine(0.0, "s" * WORD_LIMIT_CHARS)
    assert read_line("stdout", error) == ErrorLine("x", "m" * ERROR_MESSAGE_LIMIT_CHARS)


def parse(data: bytes, cuts: list[int], start: int = 0) -> list[ParsedLine]:
    parser = LineParser("stdout")
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    found = []
    for low, high in itertools.pairwise(edges):
        found += parser.feed(data[low:high], start + low)
    return found + list(parser.close())


PIECES = st.one_of(
    st.sampled_from([*SPELLED, *LOGS, b"\n", b"\n\n"]), st.binary(max_size=40), st.just(b"x" * (LINE_LIMIT_BYTES + 3))
)


@given(st.lists(PIECES, max_size=8), st.lists(st.integers(0, 10**6), max_size=12), st.integers(0, 10**12))
def test_any_chunking_gives_the_same_messages(pieces: list[bytes], cuts: list[int], start: int) -> None:
    data = b"\n".join(pieces)
    found = parse(data, cuts, start)
    assert found == parse(data, [], start)
    ends = [end for _, end in found]
    assert ends == sorted(set(ends))
    assert not found or start < ends[-1] <= start + len(data)


@given(st.lists(st.sampled_from([*SPELLED, *LOGS]), min_size=1, max_size=6))
def test_ends_are_where_the_lines_end(lines: list[bytes]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    ends = [sum(len(line) + 1 for line in lines[: n + 1]) for n in range(len(lines))]
    assert [end for _, end in parse(data, [])] == ends


@pytest.mark.parametrize("extra", [0, 1, 5_000_000])
def test_a_long_line_is_cut_and_the_next_one_read(extra: int) -> None:
    line = b'{"type":"ready"}'
    found = parse(b"x" * (LINE_LIMIT_BYTES + extra) + b"\n" + line, [LINE_LIMIT_BYTES, 70_000])
    assert found[0].message == LogLine("stdout", "x" * LINE_LIMIT_BYTES)
    assert found[0].end == LINE_LIMIT_BYTES + (extra == 0)
    assert [message for message, _ in found[1:]] == [ReadyLine()]


def test_memory_stays_bounded_without_a_newline() -> None:
    parser = LineParser("stdout")
    messages = [m for n in range(1000) for m in parser.feed(b"x" * 10_000, n * 10_000)]
    assert len(messages) == 1
    assert not parser.at_line_start
    assert [m.message for m in parser.feed(b"\nok\n", 10**7)] == [LogLine("stdout", "ok")]
    assert parser.at_line_start


def test_exit_codes_spelled_out() -> None:
    assert dict(EXIT_FAILURES) == {
        0: None, 64: "bad_job", 65: "bad_input", 69: "gpu_unhealthy", 70: "internal", 75: "internal",
    }  # fmt: skip
    assert all(code in FAILURES for code in EXIT_FAILURES.values() if code)


def test_job_file_round_trip() -> None:
    job = JobFile(
        id="j", owner="o", endpoint="echo", round=1, attempt=2, input={"file": "a.bin"}, timeouts=JobTimeouts(60, 5)
    )
    assert msgspec.json.decode(msgspec.json.encode(job), type=JobFile) == job
