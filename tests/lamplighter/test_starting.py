"""What keeps an edge or a runner from starting is said in one line, with exit 2 (3 where the broker is away)."""

import logging
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import anyio.to_thread
import pytest
import structlog

from bus.server.process import run_server
from lamplighter.cli.log_output import configure_logging, silence_tls_warning
from lamplighter.cli.process_setup import exit_on_error
from tests.support.nats_broker import BrokerProcess


def start(verb: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    given = {f"LAMPLIGHTER_{name}": value for name, value in {"DATA": str(folder / "data"), **settings}.items()}
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("LAMPLIGHTER_")}
    command = [sys.executable, "-m", "lamplighter", verb, "--config", settings.get("CONFIG", os.devnull)]
    return subprocess.run(command, env=quiet | given, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("verb", "settings", "code", "said"),
    [
        ("edge", {"PORT": "many"}, 2, "port"),
        ("edge", {"CONFIG": "/nowhere/lamplighter.toml"}, 2, "/nowhere/lamplighter.toml"),
        ("edge", {"DATA": "/proc/nowhere/data"}, 2, "/proc/nowhere/data"),
        ("edge", {"BIND": "192.0.2.1", "PORT": "0"}, 2, "192.0.2.1"),
        ("edge", {"PORT": "0", "BROKER__URL": "nats://127.0.0.1:1"}, 3, "nats://127.0.0.1:1"),
        ("runner", {"ENGINE": "process", "PROCESS__USER": "no-such-user"}, 2, "no user no-such-user on this machine"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, verb: str, settings: dict[str, str], code: int, said: str) -> None:
    done = start(verb, tmp_path, **settings)
    last = done.stderr.strip().splitlines()[-1]
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert last.startswith("lamplighter: ")
    assert said in last


def test_a_decision_on_the_engine_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """It is not made again: that might be another one."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "engine.json").write_text("{")
    done = start("runner", tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "engine.json, which records the engine of this host, cannot be read" in done.stderr.strip().splitlines()[-1]
    assert (tmp_path / "data" / "engine.json").read_text() == "{"


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = start("edge", tmp_path, PORT=port)
    assert (done.returncode, f"port {port} cannot be opened" in done.stderr) == (2, True)


def test_an_unusable_certificate_is_named(tmp_path: Path) -> None:
    """Hosts may not enroll here, so nothing but HTTPS needs the certificate."""
    given = {"PUBLIC__CERT": str(tmp_path / "no.pem"), "PUBLIC__KEY": str(tmp_path / "no.key")}
    done = start("edge", tmp_path, PORT="0", PUBLIC__LISTEN="127.0.0.1:0", **given)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"lamplighter: public.cert {tmp_path}/no.pem cannot be read (No such file or directory): ")


async def test_a_store_that_is_too_small_for_the_streams_is_named(tmp_path: Path) -> None:
    async with run_server(BrokerProcess(tmp_path / "broker", store_bytes=1 << 30)) as server:
        broker = server.settings("edge")
        given = {"PORT": "0", "BROKER__URL": broker.url, "BROKER__USER": "edge", "BROKER__PASSWORD": broker.password}
        done = await anyio.to_thread.run_sync(partial(start, "edge", tmp_path, **given))
    assert (done.returncode, "Traceback" in done.stderr) == (3, False), done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("lamplighter: the broker's store is too small")
    assert "set max_file_store in nats.conf to 2GB or more (20GB is usual) and restart nats-server" in last


def test_an_endpoint_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    image = tmp_path / "images" / "odd"
    image.mkdir(parents=True)
    (image / "endpoint.toml").write_text('name = "a name"\nimage = "odd"\n')
    done = start(
        "runner", tmp_path, ENGINE="process", ENDPOINTS=f'["{image.parent}"]', BROKER__URL="nats://127.0.0.1:1"
    )
    assert done.returncode == 2
    assert "endpoint.toml" in done.stderr.strip().splitlines()[-1]


def test_a_folder_without_an_endpoint_is_no_host(tmp_path: Path) -> None:
    done = start("runner", tmp_path, ENGINE="process", ENDPOINTS=f'["{tmp_path}"]', BROKER__URL="nats://127.0.0.1:1")
    assert (done.returncode, f"there is no endpoint.toml in {tmp_path}" in done.stderr) == (2, True)


def test_an_error_is_one_line_through_whatever_task_groups_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    inner = ExceptionGroup("of the watch", [ExceptionGroup("of the tasks", [RuntimeError("put out")])])
    with pytest.raises(SystemExit) as left, exit_on_error({ValueError: 2, RuntimeError: 4}):
        raise inner
    assert (left.value.code, capsys.readouterr().err) == (4, "lamplighter: put out\n")
    with pytest.raises(KeyError), exit_on_error({OSError: 4}):
        raise KeyError


def test_what_asyncio_says_of_tls_stays_away(caplog: pytest.LogCaptureFixture) -> None:
    silence_tls_warning()
    for said in ("returning true from eof_received() has no effect when using ssl", "another warning"):
        logging.getLogger("asyncio").warning(said)
    assert caplog.messages == ["another warning"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_in_the_log_tells_no_local_variables(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", form)
    try:
        hidden = "a-secret-in-a-variable"
        try:
            int(f"{hidden[:1]} is no number")
        except ValueError:
            structlog.get_logger().exception("failed", key=hidden)
    finally:
        structlog.reset_defaults()
    written = capsys.readouterr().err
    assert "ValueError" in written
    assert hidden not in written
