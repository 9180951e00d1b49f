"""Details of single drivers: packets, signatures, and programs that hang or leave processes behind."""

import json
import os
import socket
import sys
from pathlib import Path
from sysconfig import get_path
from typing import Any

import anyio
import httpx2
import pytest
from msgspec import ValidationError, convert

from edge.power.driver_calls import DriverPoller, StateReport, call_driver, query_driver
from edge.power.drivers.factory import DRIVER_FACTORIES
from edge.power.drivers.generic import CommandDriver, HttpDriver, WolDriver, magic_packet
from edge.power.drivers.libcloud import LibcloudDriver
from schemas.host_config import AnyHostConfig, CommandHostConfig, HttpHostConfig, LibcloudHostConfig, WolHostConfig
from schemas.power import PowerCallOutcome, PowerCallResult, PowerRecord, PowerState, PowerVerb, ReportedPower
from tests.contract.power_driver_rigs import NOW, SECRET
from tests.support.fake_power_driver import FakeCluster, FakePowerDriver
from tests.support.wait import wait_for

FOR_EVER = "import time; time.sleep(600)"


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def driver(**argv: tuple[str, ...]) -> CommandDriver:
    return CommandDriver("gpu-1", CommandHostConfig(**{"on": python("0"), **argv}), os.environ)


async def test_fifty_hosts_of_a_cluster_are_one_look_and_share_its_error() -> None:
    cluster = FakeCluster()
    drivers = {host: FakePowerDriver(cluster=cluster, host=host) for host in (f"pilot-{n}" for n in range(51))}
    coming, off = PowerRecord(state=PowerState.WAKING, since=NOW), PowerRecord(state=PowerState.OFF, since=NOW)
    declared = dict.fromkeys(drivers, CommandHostConfig(on=("on",)))
    poller = DriverPoller(
        declared, drivers, lambda host: (off if host == "pilot-50" else coming, False), lambda: None, interval_s=3600
    )
    await poller.poll("pilot-7")
    asked = drivers.keys() - {"pilot-50"}
    assert cluster.looks == [asked]
    assert {poller.last_reported(host, coming) for host in asked} == {StateReport(ReportedPower.OFF)}
    for machine in drivers.values():
        machine.broken = True
    await poller.poll("pilot-8")
    failed = StateReport(ReportedPower.UNKNOWN, "the driver is broken: repair it")
    assert {poller.last_reported(host, coming) for host in asked} == {failed}
    assert len(cluster.looks) == 2


async def test_a_magic_packet_goes_to_the_broadcast_address_three_times() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(5)
        wol = WolDriver(WolHostConfig(mac="a4:bb:6d:00:11:22", broadcast="127.0.0.1", port=listening.getsockname()[1]))
        assert await call_driver(wol, PowerVerb.START, "call-1", 5) == PowerCallResult(PowerCallOutcome.DONE)
        heard = {await anyio.to_thread.run_sync(listening.recv, 200) for _ in range(3)}
    assert heard == {b"\xff" * 6 + b"\xa4\xbb\x6d\x00\x11\x22" * 16}
    assert magic_packet("A4-BB-6D-00-11-22") in heard


async def test_wake_on_lan_tells_nothing_and_leaves_off_to_the_runner() -> None:
    wol = WolDriver(WolHostConfig(mac="a4:bb:6d:00:11:22"))
    assert not wol.can_report_state
    assert (await query_driver(wol, 5)).power is ReportedPower.UNKNOWN
    assert await call_driver(wol, PowerVerb.STOP, "call-1", 5) == PowerCallResult(PowerCallOutcome.DONE)


async def test_a_driver_that_breaks_has_failed_and_nothing_else() -> None:
    class Broken(WolDriver):
        async def start(self, call_id: str) -> None:
            raise KeyError(call_id)

        async def state(self) -> ReportedPower:
            raise KeyError("state")

    broken = Broken(WolHostConfig(mac="a4:bb:6d:00:11:22"))
    assert await call_driver(broken, PowerVerb.START, "call-1", 5) == PowerCallResult(
        PowerCallOutcome.FAILED, "KeyError: 'call-1'"
    )
    assert (await query_driver(broken, 5)).power is ReportedPower.UNKNOWN


async def test_a_program_inherits_none_of_the_edges_settings(tmp_path: Path) -> None:
    """The edge's environment holds the broker's password, which permits everything."""
    written = tmp_path / "environ"
    dump = f"import json, os, pathlib; pathlib.Path({str(written)!r}).write_text(json.dumps(dict(os.environ)))"
    edge = {**os.environ, "LAMPLIGHTER_BROKER__PASSWORD": "p", "LAMPLIGHTER_DATA": "d", "TOKEN": "t", "OTHER": "o"}
    declared = CommandHostConfig(on=python(dump), env={"BOX": "uhost-1", "LANG": "C"}, inherit=("TOKEN", "ABSENT"))
    assert await call_driver(CommandDriver("gpu-1", declared, edge), PowerVerb.START, "call-1", 20) == PowerCallResult(
        PowerCallOutcome.DONE
    )
    given = json.loads(await anyio.Path(written).read_text())
    ours = {name: value for name, value in given.items() if name.startswith("LAMPLIGHTER_")}
    assert ours == {"LAMPLIGHTER_HOST": "gpu-1", "LAMPLIGHTER_CALL": "call-1"}
    assert (given["BOX"], given["LANG"], given["TOKEN"]) == ("uhost-1", "C", "t")
    assert given["PATH"] == f"{os.environ['PATH']}:{get_path('scripts')}"  # where `lamplighter` is
    assert not {"OTHER", "ABSENT"} & given.keys()


@pytest.mark.parametrize(
    "more",
    [{"inherit": ["LAMPLIGHTER_BROKER__PASSWORD"]}, {"inherit": ["A=B"]}, {"env": {"A B": "c"}}, {"env": {"A": 1}}],
)
def test_what_is_handed_over_is_named_well(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        convert({"driver": "command", "on": ["true"], **more}, AnyHostConfig)


async def test_a_program_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    born = tmp_path / "born"
    code = f"import subprocess, sys, pathlib; c = subprocess.Popen([sys.executable, '-c', {FOR_EVER!r}]); "
    code += f"pathlib.Path({str(born)!r}).write_text(str(c.pid)); c.wait()"
    answer = await call_driver(driver(on=python(code)), PowerVerb.START, "call-1", 1.5)
    assert answer == PowerCallResult(PowerCallOutcome.FAILED, "the power driver did not answer in 1.5 s")

    async def ended() -> bool:
        return not _alive(int(born.read_text()))

    await wait_for(ended)  # init may take a moment to notice


def _alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


async def test_what_a_program_leaves_running_does_not_hold_the_call(tmp_path: Path) -> None:
    born = tmp_path / "born"
    code = f"import subprocess, sys, pathlib; c = subprocess.Popen([sys.executable, '-c', {FOR_EVER!r}]); "
    code += f"pathlib.Path({str(born)!r}).write_text(str(c.pid))"
    assert await call_driver(driver(on=python(code)), PowerVerb.START, "call-1", 20) == PowerCallResult(
        PowerCallOutcome.DONE
    )
    left = int(born.read_text())
    assert _alive(left)
    os.kill(left, 9)


async def test_a_program_learns_the_host_and_the_call(tmp_path: Path) -> None:
    names = ("LAMPLIGHTER_HOST", "LAMPLIGHTER_CALL")
    code = f"import os; open({str(tmp_path / 'env')!r}, 'w').write(' '.join(os.environ[n] for n in {names!r}))"
    assert await call_driver(driver(on=python(code)), PowerVerb.START, "call-7", 20) == PowerCallResult(
        PowerCallOutcome.DONE
    )
    assert (tmp_path / "env").read_text() == "gpu-1 call-7"


async def test_a_program_that_is_not_there_is_a_failure_that_names_it() -> None:
    answer = await call_driver(driver(on=("no-such-program",)), PowerVerb.START, "call-1", 5)
    assert answer.outcome is PowerCallOutcome.FAILED
    assert "no-such-program cannot be run" in answer.why


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("0", ReportedPower.ON),
        ("raise SystemExit(1)", ReportedPower.OFF),
        ("raise SystemExit(2)", ReportedPower.UNKNOWN),
        ("print('Starting')", ReportedPower.STARTING),
        ("print('stopping'); raise SystemExit(1)", ReportedPower.STOPPING),
        ("print('on fire')", ReportedPower.ON),
    ],
)
async def test_the_state_is_the_last_word_or_the_exit(code: str, said: ReportedPower) -> None:
    assert (await query_driver(driver(state=python(code)), 20)).power is said


async def test_without_a_state_program_the_switch_tells_nothing() -> None:
    assert not driver().can_report_state
    assert (await query_driver(driver(), 5)).power is ReportedPower.UNKNOWN


@pytest.mark.parametrize("url", ["http://[", "http://xn--/", "http://a:99999/"])
async def test_a_url_that_nobody_can_ask_is_a_failure_that_names_it(url: str) -> None:
    async with httpx2.AsyncClient(timeout=60) as client:
        declared = HttpHostConfig(url=url, secret=SECRET)
        http = HttpDriver("gpu-1", declared, client, lambda: NOW, lambda: "call-1")
        assert (await query_driver(http, 5)).power is ReportedPower.UNKNOWN
        answer = await call_driver(http, PowerVerb.START, "call-1", 5)
    assert (answer.outcome, url in answer.why) == (PowerCallOutcome.FAILED, True)


@pytest.mark.parametrize(
    ("declared", "why"),
    [
        ({"provider": "nonsense"}, "nonsense does not exist"),
        ({"provider": "ec2", "options": {"region": "nowhere"}}, "Invalid region: nowhere"),
    ],
)
async def test_a_mistake_that_only_the_cloud_knows_is_a_failure_that_names_it(
    declared: dict[str, Any], why: str
) -> None:
    host = LibcloudHostConfig(node="i-1", key_env="CLOUD_KEY", **declared)
    cloud = LibcloudDriver(host, {"CLOUD_KEY": "key"})
    assert (await query_driver(cloud, 5)).power is ReportedPower.UNKNOWN
    answer = await call_driver(cloud, PowerVerb.START, "call-1", 5)
    assert (answer.outcome, why in answer.why) == (PowerCallOutcome.FAILED, True)


def test_every_declaration_has_a_builder() -> None:
    tags = {kind.__struct_config__.tag for kind in DRIVER_FACTORIES}
    assert tags == {"command", "http", "wol", "libcloud", "relay", "module", "kubernetes"}


@pytest.mark.parametrize(
    ("declared", "complaint"),
    [
        ({"driver": "command"}, "on"),
        ({"driver": "command", "on": []}, "length"),
        ({"driver": "command", "on": ["x"], "quiet_hours": ["23-7"]}, "regex"),
        ({"driver": "command", "on": ["x"], "idle": 3}, "idle"),
        ({"driver": "command", "on": ["x"], "budget": {"money": 3}}, "price"),
        ({"driver": "wol", "mac": "a4:bb"}, "regex"),
        ({"driver": "wol", "mac": "a4:bb:6d:00:11:22", "timezone": "Mars/Olympus"}, "time zone"),
        ({"driver": "http", "url": "http://x", "secret": "hush"}, "whsec_"),
        ({"driver": "http", "url": "http://x", "secret": "whsec_abcde"}, "base64"),
        ({"driver": "magic"}, "magic"),
    ],
)
def test_a_mistake_in_a_declaration_is_named(declared: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        convert(declared, AnyHostConfig, strict=False)
