"""Lines for systemd's journal: entries with fields, from a real socket and from a real journald."""

import array
import fcntl
import json
import logging
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from msgspec import Struct

from lamplighter.cli import log_output
from lamplighter.cli.log_output import configure_logging
from tests.support.doc_pages import ROOT
from tests.support.requirements import require

SECRET = "s3cr3t" * 6
JOB = {"owner": "ann", "job_id": "first", "trace_id": "t1"}


class JournalEnd(Struct, frozen=True):
    """What journald has in its place: the stream that stderr is connected to, and the socket for entries."""

    stream: socket.socket
    entries: socket.socket

    def read_entry(self) -> dict[str, str]:
        """Return the fields of the next entry, as the protocol defines them."""
        data, rights, _, _ = self.entries.recvmsg(2**20, socket.CMSG_LEN(4))
        if rights:
            (descriptor,) = array.array("i", rights[0][2])
            with os.fdopen(descriptor, "rb") as file:
                assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
                file.seek(0)
                data = file.read()
        return dict(parse(data))


def parse(data: bytes) -> Iterator[tuple[str, str]]:
    while data:
        line, _, data = data.partition(b"\n")
        name, is_text, value = line.partition(b"=")
        if not is_text:
            (length,) = struct.unpack("<Q", data[:8])
            value, data = data[8 : 8 + length], data[9 + length :]
        yield name.decode(), value.decode()


OpenJournal = Callable[..., JournalEnd]


@pytest.fixture
def open_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenJournal]:
    """Return a function that makes stderr a stream of the journal and configures the log.

    pytest replaces stderr between the fixtures and the test, so the test calls it.
    """
    read, written = socket.socketpair()
    entries = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with read, written, entries, os.fdopen(os.dup(written.fileno()), "w") as stream:

        def open_journal(form: str = "json", *secrets: str, stream_id: str = "", has_socket: bool = True) -> JournalEnd:
            found = os.fstat(written.fileno())
            monkeypatch.setenv(log_output.JOURNAL_VARIABLE, stream_id or f"{found.st_dev}:{found.st_ino}")
            monkeypatch.setattr("sys.stderr", stream)
            monkeypatch.setattr("sys.excepthook", sys.excepthook)
            monkeypatch.setattr(logging.getLogger(), "handlers", [])
            monkeypatch.setattr(log_output, "JOURNAL_SOCKET", str(tmp_path / "socket"))
            if has_socket:
                entries.bind(str(tmp_path / "socket"))
            configure_logging("debug", form, secrets)
            return JournalEnd(read, entries)

        for end in (read, entries):
            end.settimeout(30)
        yield open_journal
    structlog.reset_defaults()


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_entry_has_the_line_its_priority_and_the_fields_of_the_job(open_journal: OpenJournal, form: str) -> None:
    journal_end = open_journal(form)
    structlog.get_logger().warning("attempt_ended", **JOB, status="failed", error="oom: the job needed more")
    entry = journal_end.read_entry()
    line = entry.pop("MESSAGE")
    assert "attempt_ended" in line
    assert "failed" in line
    assert entry == {
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "lamplighter",
        "LAMPLIGHTER_EVENT": "attempt_ended",
        "LAMPLIGHTER_OWNER": "ann",
        "LAMPLIGHTER_JOB_ID": "first",
        "LAMPLIGHTER_TRACE_ID": "t1",
        "LAMPLIGHTER_ERROR": "oom: the job needed more",
    }


def test_each_level_has_its_priority_and_libraries_have_entries_too(open_journal: OpenJournal) -> None:
    journal_end = open_journal()
    for level in ("debug", "info", "warning", "error"):
        getattr(structlog.get_logger(), level)("said")
    logging.getLogger("some.library").error("two\nlines of %s", f"https://a/b?sig={SECRET}")
    entries = [journal_end.read_entry() for _ in range(5)]
    assert [entry["PRIORITY"] for entry in entries] == ["7", "6", "4", "3", "3"]
    assert entries[-1]["MESSAGE"].endswith("some.library: two\nlines of https://a/b?***")


def test_fields_have_no_secrets_and_no_line_can_add_a_field(open_journal: OpenJournal) -> None:
    journal_end = open_journal("json", "correct horse")
    error = ValueError(f"refused https://a/b?sig={SECRET} correct horse\nPRIORITY=0")
    structlog.get_logger().warning("fetch_failed", job_id="a\nLAMPLIGHTER_OWNER=bob", error=error)
    entry = journal_end.read_entry()
    assert entry["LAMPLIGHTER_ERROR"] == "refused https://a/b?*** ***\nPRIORITY=0"
    assert (entry["LAMPLIGHTER_JOB_ID"], entry["PRIORITY"]) == ("a\nLAMPLIGHTER_OWNER=bob", "4")
    assert "LAMPLIGHTER_OWNER" not in entry


def test_a_line_that_no_datagram_can_hold_is_sent_in_a_file(open_journal: OpenJournal) -> None:
    journal_end = open_journal()
    structlog.get_logger().error("said", text="x" * 2_000_000, **JOB)
    entry = journal_end.read_entry()
    assert json.loads(entry["MESSAGE"])["text"] == "x" * 2_000_000
    assert entry["LAMPLIGHTER_JOB_ID"] == "first"


def test_without_the_socket_lines_go_to_stderr_with_their_priority(open_journal: OpenJournal, tmp_path: Path) -> None:
    journal_end = open_journal(has_socket=False)
    log = structlog.get_logger()
    for level in ("debug", "info", "warning", "error"):
        getattr(log, level)("said")
    logging.getLogger("some.library").warning("two\nlines")
    lines = journal_end.stream.recv(65536).decode().splitlines()
    assert [line[:3] for line in lines] == ["<7>", "<6>", "<4>", "<3>", "<4>", "<4>"]
    assert json.loads(lines[2][3:])["event"] == "said"
    journal_end.entries.bind(str(tmp_path / "socket"))  # journald has started
    log.info("said again")
    assert journal_end.read_entry()["LAMPLIGHTER_EVENT"] == "said again"


def test_a_stderr_that_is_not_the_journal_gets_no_priority(open_journal: OpenJournal) -> None:
    journal_end = open_journal(stream_id="1:1")  # inherited from a service that redirected its stderr
    structlog.get_logger().info("said")
    assert journal_end.stream.recv(65536).startswith(b"{")


JOURNALD = Path("/usr/lib/systemd/systemd-journald")
# journald in a mount namespace of its own, with its sockets and its journal in memory; the program logs as a service.
SERVICE = """
mount -t tmpfs tmpfs /run && mkdir /run/systemd && {journald} & journald=$!
trap 'kill $journald' EXIT
until [ -S /run/systemd/journal/socket ] && [ -S /run/systemd/journal/stdout ]; do
  kill -0 $journald && sleep 0.05 || exit 1
done
systemd-cat sh -c 'JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec "$0" "$@"' {python} -c '{program}'
journalctl --sync && journalctl --output json --output-fields {fields} LAMPLIGHTER_JOB_ID=first
"""
PROGRAM = """
import logging, structlog
from lamplighter.cli.log_output import configure_logging
configure_logging("info", "text")
log = structlog.get_logger()
log.info("job_claimed", job_id="first", owner="ann")
log.info("job_claimed", job_id="second", owner="ann")
log.warning("attempt_ended", job_id="first", owner="ann", text="x" * 500_000)
"""


def test_journalctl_finds_the_lines_of_a_job() -> None:
    tools = all(map(shutil.which, ("unshare", "systemd-cat", "journalctl"))) and JOURNALD.exists() and os.geteuid() == 0
    require(None if tools else "no journald can be started: install systemd, and run as root", "REQUIRE_SYSTEMD")
    fields = "MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,LAMPLIGHTER_EVENT,_TRANSPORT"
    script = SERVICE.format(journald=JOURNALD, python=sys.executable, program=PROGRAM.replace("'", '"'), fields=fields)
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(entry["LAMPLIGHTER_EVENT"], entry["PRIORITY"], entry["_TRANSPORT"]) for entry in found] == [
        ("job_claimed", "6", "journal"),
        ("attempt_ended", "4", "journal"),
    ]
