"""What a person or a script gets wrong at the command line: one line that says what to do, and an exit code."""

import http.server
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from click.testing import CliRunner, Result

from lamplighter.api import error_from_problem
from lamplighter.cli import context, main
from lamplighter.cli.context import EdgeAddress
from lamplighter.cli.doctor import DoctorTarget, check_edge
from lamplighter.client import Client
from schemas.problems import ProblemError

NOBODY = "http://127.0.0.1:1"


def lamplighter(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, words)])


def one_line(done: Result) -> str:
    """What it said on stderr, where that is one line of ours."""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("lamplighter: ")
    return line


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[str]:
    """A web server that is no edge."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with socketserver.TCPServer(("127.0.0.1", 0), lambda *given: Quiet(*given, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("jobs", "--url", "http://127.0.0.1:port"), 3, "is the address right?"),
        (("jobs", "--url", "http://[::1"), 3, "is the address right?"),
        (("doctor", "--url", "http://[::1"), 3, "is the address right?"),
        (("jobs", "--url", NOBODY, "--key", "schlüssel"), 4, "copy it again"),
        (("jobs", "--url", NOBODY, "--key", "lamp_a_b\n"), 4, "copy it again"),
        (("watch", "some-job", "--url", NOBODY), 3, "is the edge running"),
    ],
)
def test_an_address_or_a_key_that_leads_nowhere_is_one_line(tmp_path, words, code, said):
    done = lamplighter(*words, "--data", tmp_path)
    assert (done.exit_code, said in one_line(done)) == (code, True)


def test_a_web_server_that_is_no_edge_is_distinguished_from_one(stranger, tmp_path):
    done = lamplighter("jobs", "--url", stranger, "--data", tmp_path)
    assert (done.exit_code, "http_404" in one_line(done)) == (4, True)
    found = lamplighter("doctor", "--url", stranger, "--data", tmp_path)
    assert (found.exit_code, "is not a Lamplighter edge (HTTP 404)" in found.stdout) == (3, True)


@pytest.mark.parametrize("headers", [{"content-type": "text/html"}, {}])
def test_doctor_takes_no_page_for_an_edge(headers):
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=b"ok", headers=headers))
    with httpx2.Client(base_url="http://edge", transport=transport) as client:
        findings = list(check_edge(DoctorTarget(EdgeAddress("http://edge"), Path(), client)))
    assert [(one.name, one.verdict) for one in findings] == [("edge", "fail")]


def test_options_before_a_verb_are_not_lost_without_a_word():
    for group, verb in (("hosts", "list"), ("assets", "list")):
        done = lamplighter(group, "--url", "http://elsewhere", verb)
        assert (done.exit_code, "after list, not before it" in done.stderr) == (2, True)


def test_ctrl_c_is_no_failed_job(monkeypatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "call", stopped)
    done = lamplighter("jobs")
    assert (done.exit_code, one_line(done)) == (130, "lamplighter: stopped by Ctrl-C")


def test_a_backup_of_a_folder_that_holds_nothing_leaves_nothing_there(tmp_path):
    done = lamplighter("backup", tmp_path / "kept.zip", "--data", tmp_path / "mistyped")
    assert (done.exit_code, "nothing to back up" in one_line(done)) == (4, True)
    assert list(tmp_path.iterdir()) == []


def test_a_command_is_shown_as_it_can_be_typed(monkeypatch, tmp_path):
    called = str(tmp_path / ".venv" / "bin" / "lamplighter")
    monkeypatch.setattr("sys.argv", [called, "up"])
    monkeypatch.setenv("PATH", str(tmp_path))
    there = context.CliContext(
        EdgeAddress("http://edge"), tmp_path, as_json=False, address_options=("--data", "a folder")
    )
    assert there.format_next_command("watch", "one") == f"{called} watch one --data 'a folder'"
    monkeypatch.setattr("sys.argv", ["/somewhere/lamplighter/__main__.py", "up"])
    assert there.format_next_command("watch", "one") == "lamplighter watch one --data 'a folder'"


def test_a_command_without_a_key_is_told_where_keys_come_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    refusal = error_from_problem(ProblemError("unauthorized", "send a valid key").problem)
    for key, said in ((None, "there is no key for http://edge: give --data"), ("lamp_a_b", "send a valid key")):
        with pytest.raises(SystemExit, match="4"):
            context.CliContext(EdgeAddress("http://edge", key), tmp_path, as_json=False).fail(refusal)
        assert said in capsys.readouterr().err
