"""The last lines of stderr: few, short, safe to print, and not repeated after an adoption."""

import msgspec
import pytest

from runner.engines.port import OutputChunk, OutputCursor
from runner.execution.output_filters import STDERR_LINE_LIMIT_CHARS, STDERR_TAIL_LINES, StderrTail
from schemas.container_protocol import OutputStream


def tail(*said: bytes, stream: OutputStream = "stderr") -> tuple[str, ...]:
    found, end = StderrTail(), 0
    for data in said:
        end += len(data)
        found = found.updated(OutputChunk(stream, data, OutputCursor(end, str(end))))
    return found.lines


def test_the_last_lines_over_any_chunks() -> None:
    lines = [f"line {number}\n".encode() for number in range(20)]
    last = tuple(f"line {number}" for number in range(20 - STDERR_TAIL_LINES, 20))
    assert tail(*lines) == tail(b"".join(lines)) == tail(b"".join(lines[:13]), b"".join(lines[13:])) == last


def test_empty_lines_and_stdout_do_not_count() -> None:
    assert tail(b"why\n\n  \n\n\n\n\n", b"\n") == ("why",)
    assert tail(b"progress\n", stream="stdout") == ()


def test_a_last_line_without_an_end_counts() -> None:
    assert tail(b"a\nb") == ("a", "b")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b"\x1b[2Jgone", "\\x1b[2Jgone"),
        (b"\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
        ("\u202eabc\u2066".encode(), "\\u202eabc\\u2066"),
        ("\x9b31m".encode(), "\\x9b31m"),
        (b"a\tb\r", "a   b"),
        ("内存不足".encode(), "内存不足"),
        (b"\xff\xfe", "\ufffd\ufffd"),
    ],
)
def test_nothing_is_left_that_a_terminal_obeys(said: bytes, shown: str) -> None:
    assert tail(said + b"\n") == (shown,)


@pytest.mark.parametrize("said", [b"x" * 100_000, b"\x1b" * 100_000, "灯".encode() * 100_000])
def test_a_long_line_keeps_its_end(said: bytes) -> None:
    (line,) = tail(said + b" the end\n")
    assert (len(line), line[0], line.endswith(" the end")) == (STDERR_LINE_LIMIT_CHARS, "…", True)


def test_what_an_earlier_life_read_is_not_read_again() -> None:
    chunks = [
        OutputChunk("stderr", b"one\n", OutputCursor(4, "4")),
        OutputChunk("stderr", b"two\n", OutputCursor(8, "8")),
    ]
    first = StderrTail().updated(chunks[0]).updated(chunks[1])
    kept = msgspec.json.decode(msgspec.json.encode(first), type=StderrTail)
    again = (
        kept.updated(chunks[0]).updated(chunks[1]).updated(OutputChunk("stderr", b"three\n", OutputCursor(14, "14")))
    )
    assert again.lines == ("one", "two", "three")
