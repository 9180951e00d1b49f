"""The echo image's program, without an engine: what needs one is in tests/contract/engines."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from schemas import endpoint
from schemas.asset import asset_fields
from schemas.container_protocol import LogLine, ProgressLine
from tests.images.job_process import IMAGES, make_job, parse_messages, read_output_data, run_program

MAIN = IMAGES / "echo" / "main.py"


def run(tmp_path: Path, given: dict[str, Any], **files: bytes) -> tuple[int, bytes, bytes]:
    with run_program(MAIN, make_job(tmp_path, given, **files)) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_gives_back_text_and_file(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, {"text": "灯", "file": "a b.bin", "steps": 3}, **{"a b.bin": b"\0data"})
    assert (code, read_output_data(tmp_path)) == (0, {"text": "灯"})
    assert (tmp_path / "out" / "a b.bin").read_bytes() == b"\0data"
    assert parse_messages(out)[-1] == ProgressLine(1.0, "echo", 3, 3)
    assert err.endswith(b"step 1 of 3\nstep 2 of 3\nstep 3 of 3\n")


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"behave": "exit"}, 0),
        ({"behave": "exit", "exit": 65}, 65),
        ({"behave": "partial"}, 0),
        ({"behave": "segv"}, -signal.SIGSEGV),
    ],
)
def test_ends_without_a_result(tmp_path: Path, given: dict[str, Any], code: int) -> None:
    assert run(tmp_path, given)[0] == code
    assert not (tmp_path / "out" / "output.json").exists()


def test_partial_leaves_half_a_file_that_is_no_output(tmp_path: Path) -> None:
    run(tmp_path, {"behave": "partial"})
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".part-result.bin"]


@pytest.mark.parametrize(("behave", "size"), [("flood", 100 << 20), ("no_newline", 8 << 20)])
def test_much_output_and_a_good_end(tmp_path: Path, behave: str, size: int) -> None:
    code, out, _ = run(tmp_path, {"behave": behave, "text": "x"})
    assert code == 0
    assert size * 0.99 < len(out) < size * 1.01
    assert read_output_data(tmp_path) == {"text": "x"}


def test_the_line_behind_no_newline_is_the_only_one_spoilt(tmp_path: Path) -> None:
    _, out, _ = run(tmp_path, {"behave": "no_newline"})
    found = parse_messages(out)
    assert [type(message) for message in found] == [ProgressLine, LogLine]


def test_endpoint_toml_says_what_the_program_reads() -> None:
    echo = endpoint.parse_endpoint((MAIN.parent / "endpoint.toml").read_text())
    assert (echo.name, echo.image, echo.warm) == ("echo", "lamplighter-echo", True)
    assert echo.process is not None
    assert echo.process.command == ("python3", "main.py")
    assert [field.name for field in asset_fields(echo.input, {"file": "x", "text": "y"})] == ["file"]
    source = MAIN.read_text()
    assert all(json.dumps(name) in source for name in echo.input["properties"])
    assert all(json.dumps(name) in source for name in echo.input["properties"]["behave"]["enum"])
