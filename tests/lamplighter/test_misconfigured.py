"""Each misconfiguration ends in one line that names the setting, the value and what is allowed, with exit code 2.

A process refuses its settings before it opens anything, so the commands run inside this process.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lamplighter.cli import main
from runner.host.enrollment import JOIN_FAILED_FILE

WOL = '[hosts.gpu-1]\ndriver = "wol"\nmac = "a4:bb:6d:00:11:22"\n'
DRIVERS = "command, http, wol, libcloud, relay, module or kubernetes"
ARGV = 'it must be a list of words, as in ["program", "argument"]'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty working folder; no variable of ours is set."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("LAMPLIGHTER_")]:
        monkeypatch.delenv(name)
    umask = os.umask(0o077)
    yield tmp_path
    os.umask(umask)


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def only_line(done: Result) -> str:
    """Return the one line that a refused command prints."""
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith("lamplighter: ")
    return line.removeprefix("lamplighter: ")


WRONG_FILES = [
    ("edge", '[hosts.gpu-1]\ndriver = "comand"', f'hosts.gpu-1.driver is "comand": it must be {DRIVERS} (did you mean'),
    ("edge", '[hosts.gpu-1]\non = ["a"]', f"hosts.gpu-1.driver is missing: set it to {DRIVERS}"),
    ("edge", '[hosts.gpu-1]\ndriver = "command"\non = "string"', f'hosts.gpu-1.on is "string": {ARGV}'),
    ("edge", '[hosts.gpu-1]\ndriver = "command"\non = []', f"hosts.gpu-1.on is []: {ARGV}"),
    ("edge", '[hosts.gpu-1]\ndriver = "command"', "hosts.gpu-1.on is missing: set it to a list of words"),
    (
        "edge",
        '[hosts.gpu-1]\ndriver = "wol"\nmac = "zz"',
        'hosts.gpu-1.mac is "zz": it must be six bytes in hex',
    ),
    ("edge", WOL + "port = 70000", "hosts.gpu-1.port is 70000: it must be a whole number from 1 to 65535"),
    ("edge", WOL + "wake_dely = 3", "hosts.gpu-1.wake_dely is not a setting (did you mean wake_delay?)"),
    ("edge", WOL + "min_on = -1", "hosts.gpu-1.min_on is -1: it must be a number of at least 0"),
    (
        "edge",
        WOL + 'quiet_hours = ["8-9"]',
        'hosts.gpu-1.quiet_hours[0] is "8-9": it must be a span of the day',
    ),
    ("edge", WOL + 'keep_on_for = ["cats"]', 'hosts.gpu-1.keep_on_for[0] is "cats": it must be programs or users'),
    ("edge", WOL + 'timezone = "Mars"', "hosts.gpu-1 is refused: 'Mars' is not a time zone that this machine knows"),
    ("edge", WOL + "price = { per_kwh = 1 }", "hosts.gpu-1.price is refused: a price needs both `per_kwh` and `watts`"),
    ("edge", WOL + "budget = { money = 1 }", "hosts.gpu-1 is refused: a budget in money needs `price`"),
    (
        "edge",
        '[hosts."gpu 1"]\ndriver = "relay"',
        'hosts."gpu 1" has a name that is not allowed: it must be 1 to 64',
    ),
    ("edge", "hosts = 3", "hosts is 3: it must be a table"),
    ("edge", '[hosts.a]\ndriver = "http"\nurl = "b"\nsecret = "c"', 'hosts.a.url is "b": it must be an address that'),
    ("edge", '[webhooks]\nsecret = "hush"', "webhooks is refused: `secret` must be whsec_"),
    ("edge", 'port = "many"', 'port is "many": it must be a whole number from 0 to 65535'),
    ("edge", "port = ", "lamplighter.toml is not valid TOML: Invalid value"),
    ("edge", "[hosts.gpu-1", "lamplighter.toml is not valid TOML: "),
    (
        "edge",
        "retention_day = 3",
        "retention_day is not a setting (did you mean retention_days?)",
    ),
    ("edge", "[serber]\nhead_s = 3", "serber is not a setting (did you mean server?)"),
    ("edge", 'log_level = "loud"', 'log_level is "loud": it must be debug, error, info or warning'),
    ("runner", '[host]\npoweroff = ["a"]', "host is a table: it must be 1 to 64"),
    ("runner", 'engine = "dokcer"', 'engine is "dokcer": it must be docker, process or auto'),
    ("runner", "slots = 0", "slots is 0: it must be a whole number from 1 to 256"),
    ("runner", 'endpoints = "images"', 'endpoints is "images": it must be a list, each item a path'),
    ("runner", "[dead_man]\nafter_s = 60", "`dead_man` needs a program to run: set poweroff"),
    ("runner", "retention_day = 3", "retention_day is not a setting"),
    ("runner", "", "there is no endpoint.toml in images or one level below: give folders of images with --endpoints"),
    ("relay", '[relay]\nurls = "https://a"', 'relay.urls is "https://a": it must be a list'),
    ("relay", "", "a relay needs --join TOKEN, or urls and key under [relay]"),
    ("up", '[hosts.gpu-1]\ndriver = "comand"', f'hosts.gpu-1.driver is "comand": it must be {DRIVERS}'),
    ("up", "retention_day = 3", "retention_day is not a setting (did you mean retention_days?)"),
    ("up", '[broker]\nurl = "nats://b"', "broker.url is *** in lamplighter.toml, but `up` decides it: remove it;"),
    (
        "up",
        'bind = "0.0.0.0"',
        'bind is "0.0.0.0" in lamplighter.toml, but `up` decides it: remove it; `up`',
    ),
    ("up", '[public]\nlisten = "0.0.0.0:1"', 'public.listen is "0.0.0.0:1" in lamplighter.toml, but `up` decides it'),
]


@pytest.mark.parametrize(("verb", "text", "said"), WRONG_FILES)
def test_a_wrong_file_is_one_line_that_names_setting_value_and_what_is_allowed(
    folder: Path, verb: str, text: str, said: str
) -> None:
    (folder / "lamplighter.toml").write_text(text)
    assert only_line(run(verb)).startswith(said)
    assert not (folder / ".lamplighter" / "edge").exists()


@pytest.mark.parametrize(
    ("verb", "variables", "said"),
    [
        (
            "runner",
            {"SLOTS": "x"},
            'slots is "x": it must be a whole number from 1 to 256: correct it in LAMPLIGHTER_S',
        ),
        (
            "runner",
            {"WARM__COUNT": "0"},
            'warm.count is "0": it must be a whole number from 1 to 64',
        ),
        ("edge", {"HOSTS": "{gpu-1}"}, "LAMPLIGHTER_HOSTS starts like JSON but cannot be read as JSON"),
        (
            "edge",
            {"HOSTS": '{"a": {"driver": "b"}}'},
            f'hosts.a.driver is "b": it must be {DRIVERS}',
        ),
        (
            "edge",
            {"BROKER": "a", "BROKER__URL": "b"},
            "LAMPLIGHTER_BROKER__URL is set together with a variable",
        ),
        (
            "edge",
            {"CONFIG": "/nowhere/a.toml"},
            "the settings file /nowhere/a.toml cannot be read",
        ),
        (
            "edge",
            {"PUBLIC__LISTEN": "8443", "PORT": "0"},
            "public is refused: `listen` is '8443': it must be",
        ),
        (
            "up",
            {"BROKER__PASSWORD": "hush"},
            "broker.password is *** in LAMPLIGHTER_BROKER__PASSWORD, but `up` decides it",
        ),
    ],
)
def test_a_wrong_variable_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, verb: str, variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"LAMPLIGHTER_{name}", value)
    assert only_line(run(verb)).startswith(said)


def test_an_option_that_the_file_makes_useless_is_refused(folder: Path) -> None:
    (folder / "lamplighter.toml").write_text("[heygem]\nenabled = false")
    said = only_line(run("up", "--easy-port", "8383"))
    assert said == "--easy-port needs /easy/, but heygem.enabled is false: remove one of the two"


def test_several_faults_are_counted_and_all_shown_by_config_check(folder: Path) -> None:
    (folder / "lamplighter.toml").write_text("slots = 0\nretention_day = 3\n[warm]\ncount = 0\n")
    assert only_line(run("runner")).endswith("(1 more: `lamplighter config check`)")
    done = run("config", "check")
    assert done.exit_code == 2
    assert [line.split()[1] for line in done.stderr.splitlines()] == ["slots", "warm.count", "retention_day"]
    (answer,) = json.loads(run("config", "check", "--json", "--edge").stdout)
    assert [line.split()[0] for line in answer["errors"]] == ["retention_day"]


def test_config_check_reads_each_file_and_warns_of_old_names_and_of_unread_variables(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMPLIGHTER_SLOT", "2")
    (folder / "a.toml").write_text(WOL + "rank = 3")
    (folder / "b.toml").write_text("port = x")
    done = run("config", "check", "a.toml", "b.toml")
    assert (done.exit_code, done.stdout) == (2, "a.toml: valid for edge, runner, relay\n")
    assert "warning: hosts.gpu-1.rank is the old name of hosts.gpu-1.wake_priority" in done.stderr
    assert "warning: the variable LAMPLIGHTER_SLOT is not read by any process" in done.stderr
    assert "lamplighter: b.toml is not valid TOML" in done.stderr
    assert only_line(run("config", "show", "b.toml")).startswith("b.toml is not valid TOML")


SHOWN = """
slots = 4
[broker]
url = "nats://user:hidden@broker:4222"
password = "hidden"
[hosts.gpu-1]
driver = "command"
on = ["a"]
env = { KEY = "hidden" }
rank = 3
"""


def test_config_show_says_where_each_value_came_from_and_hides_secrets(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "lamplighter.toml").write_text(SHOWN)
    monkeypatch.setenv("LAMPLIGHTER_SLOTS", "2")
    monkeypatch.setenv("LAMPLIGHTER_EDGE__KEY", "hidden")
    answer = json.loads(run("config", "show", "--json").stdout)
    assert "hidden" not in json.dumps(answer)
    runner = {row["name"]: (row["value"], row["source"]) for row in answer["runner"]}
    edge = {row["name"]: (row["value"], row["source"]) for row in answer["edge"]}
    assert runner["slots"] == (2, "LAMPLIGHTER_SLOTS")
    assert runner["edge.key"] == ("***", "LAMPLIGHTER_EDGE__KEY")
    assert runner["grace_s"] == (10.0, "default")
    assert edge["broker.url"] == ("nats://user:***@broker:4222", "lamplighter.toml")
    assert edge["broker.user"] == ("", "default")
    assert edge["hosts.gpu-1.driver"] == ("command", "lamplighter.toml")
    assert edge["hosts.gpu-1.wake_priority"] == (3, "lamplighter.toml")
    assert edge["hosts.gpu-1.env"] == ({"KEY": "***"}, "lamplighter.toml")
    shown = run("config", "show", "--runner").stdout
    assert "slots" in shown
    assert "RELAY" not in shown


def test_a_failed_join_is_remembered_so_that_no_host_of_its_own_starts(folder: Path) -> None:
    first = only_line(run("runner", "--join", "nonsense"))
    assert first.startswith("this is not a join token")
    again = only_line(run("runner"))
    assert again.startswith("this host was to join an installation, and that failed (this is not a join token")
    (folder / ".lamplighter" / "runner" / JOIN_FAILED_FILE).unlink()
    assert "there is no endpoint.toml" in only_line(run("runner"))
