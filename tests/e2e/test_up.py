"""`lamplighter up` and the command line, as a person and as a program use them."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from lamplighter.cli.supervisor import ProcessIdentity, read_process_identity
from tests.support.installation import ROOT
from tests.support.wait import wait_for_sync

LAMPLIGHTER = [sys.executable, "-m", "lamplighter"]


@contextmanager
def up(data: Path, *more: str, tree: Path = ROOT) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """Run `up` on the process engine until the block ends; yield it and what it printed. It must end by itself.

    `tree` is the folder of the code that it runs.
    """
    argv = [*LAMPLIGHTER, "up", "--port", "0", "--data", str(data), "--engine", "process", "--json", *more]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tree) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        try:
            yield process, json.loads(line)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(60)


def lamplighter(data: Path, *words: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    argv = [*LAMPLIGHTER, *map(str, words), "--data", str(data)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=os.environ | environ, cwd=ROOT)


def children(pid: int) -> set[int]:
    """Return the living descendants of a process (proc(5), field 4 of stat)."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, new = set[int](), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def family_of(pid: int) -> set[ProcessIdentity]:
    """Return the living descendants, each with a mark that no later process can share."""
    return {identity for child in children(pid) if (identity := read_process_identity(child)) is not None}


def wait_until_gone(family: set[ProcessIdentity]) -> None:
    """Wait until all of them have ended: a restart soon removes containers of the warm pool."""
    wait_for_sync(lambda: all(read_process_identity(one.pid) != one for one in family))


def test_a_newcomer_submits_watches_and_fetches(served_data, tmp_path):
    file, saved, folder = tmp_path / "in.txt", tmp_path / "made" / "out.txt", tmp_path / "folder"
    file.write_text("content")
    done = lamplighter(served_data, "submit", "echo", "--text", "hi", "--file", file, "-o", saved, "--json")
    job = json.loads(done.stdout)
    assert (done.returncode, job["status"], job["output"]["data"]["text"]) == (0, "succeeded", "hi")
    assert saved.read_text() == "content"
    assert lamplighter(served_data, "watch", job["id"], "-o", f"{folder}/").returncode == 0
    assert [file.read_text() for file in folder.iterdir()] == ["content"]
    assert job["id"] in lamplighter(served_data, "jobs").stdout
    assert "step 10 of 10" in lamplighter(served_data, "logs", job["id"]).stdout
    assert json.loads(lamplighter(served_data, "job", job["id"], "--json").stdout)["id"] == job["id"]
    assert "succeeded" in lamplighter(served_data, "history", job["id"]).stdout
    events = [json.loads(row) for row in lamplighter(served_data, "watch", job["id"], "--json").stdout.splitlines()]
    assert events[-1]["data"]["status"] == "succeeded"
    assert lamplighter(served_data, "delete", job["id"]).returncode == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("job", "nothing"), 4, "not_found"),
        (("submit", "echo", "--tex", "hi"), 2, "it takes --text"),
        (("submit", "nothing"), 4, "endpoint_unknown"),
        (("submit", "echo", "--behave", "exit", "--exit", "65", "--wait"), 1, "bad_input"),
        (("jobs", "--key", "lamp_a_b"), 4, "unauthorized"),
        (("jobs", "--url", "http://127.0.0.1:9"), 3, "is the edge running"),
        (("submit", "../jobs"), 4, "not_found"),
        (("delete", ""), 2, "it is empty"),
        (("submit", "echo", "-o", "/proc/nowhere/out"), 2, "/proc/nowhere cannot be used"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line_with_its_exit_code(served_data, words, code, said):
    done = lamplighter(served_data, *words)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def served_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data folder of an `up`. After SIGTERM it must end with code 0, and leave no process."""
    data = tmp_path_factory.mktemp("up") / "data"
    with up(data) as (process, said):
        assert set(said) == {"url", "key", "data"}
        family = family_of(process.pid)
        yield data
    assert process.returncode == 0
    wait_until_gone(family)


def test_a_failed_job_shows_its_last_words_and_the_command_for_all_of_them(served_data):
    wanted = ("submit", "echo", "--behave", "exit", "--exit", "65", "--steps", "3", "--wait", "--id", "failing")
    done = lamplighter(served_data, *wanted)
    assert done.returncode == 1
    *tail, command, _ = done.stderr.splitlines()[1:]
    shown = lamplighter(served_data, "job", "failing")
    job = json.loads(lamplighter(served_data, "job", "failing", "--json").stdout)
    assert job["error"]["log_tail"]
    assert tail == [f"  {line}" for line in job["error"]["log_tail"]]
    assert shown.stdout.splitlines()[-len(tail) - 1 :] == [*tail, command]
    _, *words = shlex.split(command.removeprefix("the whole log: "))
    assert words[:2] == ["logs", "failing"]
    log = subprocess.run([*LAMPLIGHTER, *words], capture_output=True, text=True, check=False, cwd=ROOT).stdout
    assert [line.strip() for line in tail] == [line.strip() for line in log.splitlines() if line.strip()][-len(tail) :]


def test_keys_hosts_endpoints_assets_and_doctor_answer_people_and_programs(served_data, tmp_path):
    made = json.loads(lamplighter(served_data, "keys", "create", "bob", "--json").stdout)
    assert made["key"].startswith("lamp_")
    assert made["id"] in lamplighter(served_data, "keys", "list").stdout
    assert lamplighter(served_data, "jobs", "--key", made["key"]).stdout.strip() == "no jobs yet"
    assert lamplighter(served_data, "keys", "revoke", made["id"]).returncode == 0
    assert json.loads(lamplighter(served_data, "hosts", "--json").stdout)[0]["state"] == "online"
    assert "--behave" in lamplighter(served_data, "endpoints", "echo").stdout
    file = tmp_path / "a.txt"
    file.write_text("x")
    digest = json.loads(lamplighter(served_data, "upload", file, "--json").stdout)["digest"]
    assert digest[7:15] in lamplighter(served_data, "assets").stdout
    doctor = lamplighter(served_data, "doctor", "--json")
    checks = {check["name"]: check["verdict"] for check in json.loads(doctor.stdout)}
    assert (doctor.returncode, checks["broker"], checks["key"], checks["host local"]) == (0, "ok", "ok", "ok")


def test_a_second_up_on_the_same_data_is_refused(served_data):
    done = subprocess.run(
        [*LAMPLIGHTER, "up", "--data", str(served_data), "--port", "0"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, "another `up` serves" in done.stderr) == (2, True)


@pytest.mark.timeout(50)  # less than the time that `up` waits for late processes
@pytest.mark.parametrize(
    ("words", "config", "said"),
    [
        ((), "port = ", "Invalid value"),
        ((), '[hosts.gpu-1]\ndriver = "magic"', "magic"),
        (("--data", "/proc/nowhere/data"), "", "/proc/nowhere/data cannot be used"),
    ],
)
def test_what_keeps_it_from_coming_up_is_said_at_once(tmp_path, words, config, said):
    file = tmp_path / "lamplighter.toml"
    file.write_text(config)
    argv = [*LAMPLIGHTER, "up", "--port", "0", "--data", str(tmp_path / "data"), "--config", str(file), *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("lamplighter: ")]
    assert said in line


def test_what_it_says_to_try_can_be_typed(tmp_path):
    argv = [*LAMPLIGHTER, "up", "--port", "0", "--engine", "process", "--data", str(tmp_path / "data")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        hint = next(line for line in process.stdout if line.startswith("Try: "))
        program, *words = shlex.split(hint.removeprefix("Try: ").split("   (")[0])
        done = subprocess.run([*LAMPLIGHTER, *words], capture_output=True, text=True, check=False, cwd=tmp_path)
        process.send_signal(signal.SIGTERM)
    assert (program, done.returncode, process.returncode) == ("lamplighter", 0, 0), done.stderr


@pytest.mark.long(16)
def test_a_second_ctrl_c_cuts_no_drain_and_leaves_nobody_behind(tmp_path):
    data = tmp_path / "data"
    with up(data, "--grace", "8") as (process, _):
        lamplighter(data, "submit", "echo", "--seconds", "60", "--id", "long")
        wait_for_sync(lambda: json.loads(lamplighter(data, "job", "long", "--json").stdout)["status"] == "running")
        family = family_of(process.pid)
        process.send_signal(signal.SIGINT)
        wait_for_sync(lambda: "draining" in lamplighter(data, "hosts").stdout)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        wait_until_gone(family)


def test_ctrl_c_in_a_terminal_ends_all_in_order(tmp_path):
    """A terminal sends SIGINT to the whole process group; the children must ignore it."""
    with up(tmp_path / "data") as (process, _):
        family = family_of(process.pid)
        assert all(os.getpgid(child.pid) != os.getpgid(process.pid) for child in family)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        wait_until_gone(family)


def test_a_killed_up_is_cleared_away_by_the_next_and_jobs_stay(tmp_path):
    data = tmp_path / "data"
    with up(data) as (process, first):
        family = family_of(process.pid)
        job = json.loads(lamplighter(data, "submit", "echo", "--text", "hi", "--wait", "--json").stdout)
        process.kill()
        process.wait()
    with up(data) as (_, second):
        wait_until_gone(family)
        assert second["key"] == first["key"]
        assert json.loads(lamplighter(data, "job", job["id"], "--json").stdout)["status"] == "succeeded"
        assert json.loads(lamplighter(data, "submit", "echo", "--wait", "--json").stdout)["status"] == "succeeded"


def test_up_reads_the_settings_file_of_its_folder_and_an_option_overrides_it(tmp_path):
    """Declared hosts and limits count; the edge and the runner get the same file."""
    (tmp_path / "lamplighter.toml").write_text(
        "slots = 3\nretention_days = 2\nmax_asset_bytes = 10\n[heygem]\nenabled = false\n"
        '[hosts.gpu-1]\ndriver = "wol"\nmac = "a4:bb:6d:00:11:22"\n'
    )
    file = tmp_path / "large.bin"
    file.write_bytes(bytes(11))
    with up(tmp_path / "data", "--slots", "2", tree=tmp_path) as (process, said):
        hosts = json.loads(lamplighter(tmp_path / "data", "hosts", "--json").stdout.splitlines()[0])
        shown = {host["id"]: host for host in hosts} if isinstance(hosts, list) else {hosts["id"]: hosts}
        assert "gpu-1" in shown
        assert lamplighter(tmp_path / "data", "upload", file).returncode == 4
        given = {name_of(pid): environ_of(pid) for pid in children(process.pid) if name_of(pid)}
        assert httpx2.get(f"{said['url']}/easy/query?code=a", timeout=60).status_code == 404
    assert given["runner"]["LAMPLIGHTER_SLOTS"] == "2"
    config = str(tmp_path / "lamplighter.toml")
    assert {given[name]["LAMPLIGHTER_CONFIG"] for name in ("edge", "runner")} == {config}


DRIVER_PROGRAM = """
[hosts.gpu-1]
driver = "command"
on = [{python!r}, "-c", {dump!r}]
env = {{ BOX = "uhost-1" }}
inherit = ["CLOUD_TOKEN"]
"""


def environ_of(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


def test_each_process_is_given_what_it_needs_and_no_secret_of_another(tmp_path, monkeypatch):
    written, config = tmp_path / "environ", tmp_path / "lamplighter.toml"
    dump = f"import json, os, pathlib; pathlib.Path({str(written)!r}).write_text(json.dumps(dict(os.environ)))"
    config.write_text(DRIVER_PROGRAM.format(python=sys.executable, dump=dump))
    monkeypatch.setenv("CLOUD_TOKEN", "of the cloud")
    monkeypatch.setenv("LAMPLIGHTER_KEY", "of a client")
    monkeypatch.setenv("LAMPLIGHTER_STORE__OPTIONS", '{"secret": "of the store"}')
    with up(tmp_path / "data", "--config", str(config)) as (process, _):
        assert lamplighter(tmp_path / "data", "power", "gpu-1", "on", LAMPLIGHTER_KEY="").returncode == 0
        wait_for_sync(written.exists)
        switch = json.loads(written.read_text())
        given = {name_of(pid): environ_of(pid) for pid in children(process.pid) if name_of(pid)}
    ours = {name for name in switch if name.startswith("LAMPLIGHTER_")}
    assert (ours, switch["BOX"], switch["CLOUD_TOKEN"]) == (
        {"LAMPLIGHTER_HOST", "LAMPLIGHTER_CALL"},
        "uhost-1",
        "of the cloud",
    )
    assert given.keys() == {"edge", "runner", "nats-server"}
    assert not [name for name in given["nats-server"] if name.startswith("LAMPLIGHTER_")]
    assert not {"CLOUD_TOKEN", "LAMPLIGHTER_KEY", "LAMPLIGHTER_STORE__OPTIONS"} & given["runner"].keys()
    assert given["edge"]["CLOUD_TOKEN"] == "of the cloud"
    assert "LAMPLIGHTER_KEY" not in given["edge"]


def name_of(pid: int) -> str | None:
    """Return which of the three processes of `up` this is."""
    argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return next((name for name in ("edge", "runner") if argv[1:4] == ["-m", "lamplighter", name]), None) or (
        "nats-server" if argv[0].endswith("nats-server") else None
    )
