"""Files that a job leaves on the host's disk: the kept log, the checkpoint, out/."""

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis.strategies as st
import pytest
import structlog
from hypothesis import given

from runner.engines.port import OutputCursor
from runner.execution import durable_state
from runner.execution.durable_state import Checkpoint, CheckpointFile
from runner.execution.job_files import CollectedOutput, OutputRefused, collect_outputs, find_output
from runner.execution.output_pump import HeadTailLog
from runner.execution.verdict import StopReason
from schemas.container_protocol import ErrorLine
from schemas.events import FeedPosition, LogMessage
from schemas.job import NESTING_LIMIT, OUTPUT_DATA_LIMIT_BYTES, JobMetric

NOBODY = 65534
LINES = st.lists(st.sampled_from([b"a\n", b"bb\n", b"ccc\n", b"\n", b"long line of output\n"]), max_size=30)


@given(LINES, st.integers(1, 7), st.integers(0, 100))
def test_the_kept_log_is_the_first_and_the_last_of_it(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], chunk: int, again: int
) -> None:
    """Write in chunks of any size, a part of them twice, as a runner process that takes over does."""
    share = 24
    folder = tmp_path_factory.mktemp("log")
    printed = b"".join(lines)
    first = HeadTailLog(folder, limit_bytes=share)
    write(first, printed, 0, chunk)
    back = max(0, len(printed) - again)
    second = HeadTailLog(folder, back, share)
    write(second, printed[back:], back, chunk)
    whole = second.assemble()
    if not printed:
        assert whole is None
        return
    assert whole is not None
    kept = whole.read_bytes()
    if len(printed) <= 2 * share:
        assert kept == printed
    else:
        assert kept.startswith(printed[:share])
        assert kept.endswith(printed[-share:])
        assert f"{len(printed) - 2 * share} bytes".encode() in kept


def write(log: HeadTailLog, data: bytes, offset: int, size: int) -> None:
    for start in range(0, len(data), size):
        log.write(data[start : start + size], offset + start)


def test_lines_for_the_runner_are_not_in_the_log(tmp_path: Path) -> None:
    log = HeadTailLog(tmp_path)
    log.write(b'hello\n{"type":"progress","fraction":0.5}\n{"type":"error","code":"a","message":"b"}\n{"own": 1}\n', 0)
    whole = log.assemble()
    assert whole is not None
    assert whole.read_text() == 'hello\n{"type":"error","code":"a","message":"b"}\n{"own": 1}\n'


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    at = datetime(2026, 11, 21, tzinfo=UTC)
    written = Checkpoint(
        started_at=at,
        stop_reason=StopReason.STALL,
        cursor=OutputCursor(7, "x"),
        log_offset=7,
        unpublished=(LogMessage(FeedPosition(1, 2, 7), at, "stdout", "hello\n"),),
        error_line=ErrorLine("no_face", "nobody"),
        metrics=(JobMetric("fps", 24.5, "1/s"),),
    )
    durable_state.write_checkpoint(tmp_path, written)
    assert durable_state.read_checkpoint(tmp_path) == written
    assert [path.name for path in tmp_path.iterdir()] == [durable_state.CHECKPOINT_FILE]


@pytest.mark.parametrize("rubbish", [b"", b"{", b'{"mark": 1}'])
def test_a_journal_that_cannot_be_read_is_blank(tmp_path: Path, rubbish: bytes) -> None:
    (tmp_path / durable_state.CHECKPOINT_FILE).write_bytes(rubbish)
    assert durable_state.read_checkpoint(tmp_path) == Checkpoint()


async def test_a_diary_keeps_what_others_noted(tmp_path: Path) -> None:
    diary = CheckpointFile(tmp_path / "new", structlog.get_logger("test"))
    await diary.load()
    await diary.update(log_offset=3)
    await diary.update(stop_reason=StopReason.CANCEL)
    assert durable_state.read_checkpoint(tmp_path / "new") == Checkpoint(log_offset=3, stop_reason=StopReason.CANCEL)


async def test_a_journal_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path) -> None:
    diary = CheckpointFile(tmp_path, structlog.get_logger("test"))
    (tmp_path / durable_state.CHECKPOINT_FILE).mkdir()
    await diary.update(stop_reason=StopReason.CANCEL)
    assert diary.current.stop_reason is StopReason.CANCEL
    with pytest.raises(OSError, match="directory"):
        await diary.update_then(lambda: None, log_offset=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "output.json").write_text('{"n": 1}')
    return tmp_path


def test_everything_in_out_is_an_output(folder: Path) -> None:
    (folder / "b.txt").write_text("b")
    (folder / "视频.mp4").write_text("v")
    (folder / ".part-half").write_text("h")
    found = collect_outputs(folder)
    assert found.data == {"n": 1}
    assert [path.name for path in found.files] == ["b.txt", "视频.mp4"]


def _link(folder: Path) -> None:
    (folder / "etc").symlink_to("/etc/passwd")


def _linked_answer(folder: Path) -> None:
    (folder / "output.json").unlink()
    (folder / "output.json").symlink_to("/etc/passwd")


def _folder(folder: Path) -> None:
    (folder / "sub").mkdir()


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def _evil_name(folder: Path) -> None:
    (folder / "a\nb").write_text("")


def _dashed(folder: Path) -> None:
    (folder / "-rf").write_text("")


def _list(folder: Path) -> None:
    (folder / "output.json").write_text("[]")


def _not_utf8(folder: Path) -> None:
    (folder / "output.json").write_bytes(b'{"text": "\xce\xde"}')


def _nested(folder: Path) -> None:
    (folder / "output.json").write_text('{"a": ' + "[" * NESTING_LIMIT + "0" + "]" * NESTING_LIMIT + "}")


def _endless(folder: Path) -> None:
    (folder / "output.json").write_text('{"a": ' + "[" * 100_000)


def _large(folder: Path) -> None:
    (folder / "output.json").write_text('"' + "x" * OUTPUT_DATA_LIMIT_BYTES + '"')


def _many(folder: Path) -> None:
    for number in range(1000):
        (folder / f"{number}").write_text("")


REFUSED = [
    (_link, "output_invalid"),
    (_linked_answer, "output_invalid"),
    (_folder, "output_invalid"),
    (_pipe, "output_invalid"),
    (_evil_name, "output_invalid"),
    (_dashed, "output_invalid"),
    (_list, "output_invalid"),
    (_not_utf8, "output_invalid"),
    (_nested, "output_invalid"),
    (_endless, "output_invalid"),
    (_large, "output_too_large"),
    (_many, "output_too_large"),
]


@pytest.mark.parametrize(("trick", "code"), REFUSED)
def test_tricks_in_out_are_refused(folder: Path, trick: Callable[[Path], None], code: str) -> None:
    trick(folder)
    with pytest.raises(OutputRefused) as refused:
        collect_outputs(folder)
    assert refused.value.code == code


def test_an_out_that_leads_elsewhere_is_refused(folder: Path) -> None:
    (folder / "real").mkdir()
    (folder / "out").symlink_to("real")
    with pytest.raises(OutputRefused):
        collect_outputs(folder / "out")


def test_files_are_a_result_without_an_answer(folder: Path) -> None:
    (folder / "output.json").unlink()
    (folder / ".part-a.mp4").write_text("half")
    assert find_output(folder) == (False, False)
    (folder / "a.mp4").write_text("whole")
    assert find_output(folder) == (True, True)
    assert collect_outputs(folder) == CollectedOutput({}, (folder / "a.mp4",))


@pytest.fixture
def forbidden() -> Iterator[Path]:
    """Return a folder without permissions, as user nobody: root can read every file."""
    with TemporaryDirectory(dir="/tmp") as made:
        folder, me = Path(made), os.geteuid()
        if me == 0:
            os.chown(folder, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            os.seteuid(me)


@pytest.mark.parametrize("name", ["output.json", "a.mp4"])
def test_a_file_that_cannot_be_read_is_refused(forbidden: Path, name: str) -> None:
    (forbidden / name).write_text("{}")
    (forbidden / name).chmod(0)
    with pytest.raises(OutputRefused, match="cannot be read"):
        collect_outputs(forbidden)


def test_an_answer_that_is_a_dangling_link_is_there_and_refused(folder: Path) -> None:
    (folder / "output.json").unlink()
    (folder / "output.json").symlink_to("nowhere")
    assert find_output(folder) == (True, False)
    with pytest.raises(OutputRefused):
        collect_outputs(folder)
