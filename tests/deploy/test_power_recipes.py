"""The recipes run as they are copied: against providers, clouds and programs that this file plays."""

import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from msgspec import convert, structs
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from edge.power.driver_calls import call_driver, query_driver
from edge.power.drivers.factory import DriverDependencies, DriverUnusable, build_drivers
from edge.power.drivers.generic import magic_packet
from edge.settings import EdgeSettings
from schemas.host_config import AnyHostConfig, CommandHostConfig, LibcloudHostConfig, WolHostConfig
from schemas.job import Token
from schemas.power import PowerCallOutcome, PowerDriver, PowerVerb, ReportedPower
from schemas.settings_loader import load_settings, unknown_settings
from tests.contract.power_driver_rigs import Ec2DriverRig, FakeEc2, FakeRelay, RemoteMachine, serve_fake_ec2
from tests.support.doc_pages import read_blocks
from tests.support.http_server import serve_app

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deploy" / "power"
RECIPES = sorted(FOLDER.glob("*.toml"))
DELETING = re.compile(r"terminate|release|delete|destroy|remove", re.IGNORECASE)
OPERATORS_PATH = "/usr/bin:/bin"  # of a service of systemd: without the virtual environment
TIMEOUT_S = 20.0


def hosts(recipe: Path) -> dict[str, AnyHostConfig]:
    return convert(tomllib.loads(recipe.read_text())["hosts"], dict[Token, AnyHostConfig], strict=False)


@asynccontextmanager
async def drivers(
    declared: Mapping[str, AnyHostConfig], environ: Mapping[str, str] | None = None, relay: FakeRelay | None = None
) -> AsyncIterator[dict[str, PowerDriver]]:
    """Build the drivers as the edge does."""
    async with httpx2.AsyncClient(timeout=60) as client:
        given = {"PATH": OPERATORS_PATH, **(environ or {})}
        dependencies = DriverDependencies(
            client=client, environ=given, now=lambda: datetime.now(UTC), new_id=lambda: "question-1"
        )
        if relay is not None:
            dependencies = structs.replace(dependencies, relay=relay)
        yield build_drivers(declared, dependencies)


async def assert_goes_on_and_off(driver: PowerDriver) -> None:
    for verb, power in ((PowerVerb.START, ReportedPower.ON), (PowerVerb.STOP, ReportedPower.OFF)):
        answer = await call_driver(driver, verb, "call-1", TIMEOUT_S)
        assert answer.outcome is PowerCallOutcome.DONE, answer.why
        assert (await query_driver(driver, TIMEOUT_S)).power is power


def test_there_is_a_recipe_for_each_of_them() -> None:
    assert [recipe.stem for recipe in RECIPES] == ["autodl", "aws", "compshare", "pc", "slurm"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_is_valid_names_no_file_of_a_checkout_and_never_deletes(recipe: Path) -> None:
    text = recipe.read_text()
    declared = load_settings(EdgeSettings, text, {}).hosts
    assert declared
    assert unknown_settings([EdgeSettings], text) == []
    for host in declared.values():
        argvs = [host.on, host.off, host.state] if isinstance(host, CommandHostConfig) else []
        for argv in filter(None, argvs):
            assert not DELETING.search(" ".join(argv))
            assert not [word for word in argv if "/" in word]


def test_all_recipes_fit_into_one_file() -> None:
    names = [name for recipe in RECIPES for name in hosts(recipe)]
    assert len(names) == len(set(names))


class RentedBox:
    """CompShare and AutoDL as far as our program knows them: one box, and stock that runs out."""

    def __init__(self) -> None:
        self.power = "off"
        self.stock = 0
        self.orders: list[str] = []
        self.asked: list[str] = []  # the ids of the boxes
        self.away = False

    def order(self, verb: str) -> str | None:
        """What is wrong, or None."""
        self.orders.append(verb)
        if verb == "on" and not self.stock:
            return "该机型资源不足，请稍后再试"
        self.power = verb
        return None

    async def compshare(self, request: Request) -> JSONResponse:
        action = request.query_params["Action"]
        self.asked.append(request.query_params.get("UHostIds.0") or request.query_params["UHostId"])
        assert len(request.query_params["Signature"]) == 40
        if action == "DescribeCompShareInstance":
            state = {"on": "Running", "off": "Stopped"}[self.power]
            return JSONResponse({"RetCode": 0, "UHostSet": [{"State": state}]})
        wrong = self.order("on" if action == "StartCompShareInstance" else "off")
        return JSONResponse({"RetCode": 0} if wrong is None else {"RetCode": 8357, "Message": wrong})

    async def autodl(self, request: Request) -> JSONResponse:
        assert request.headers["authorization"] == "token"
        if request.method == "GET":
            self.asked.append(request.query_params["instance_uuid"])
            return JSONResponse({"code": "Success", "data": {"on": "running", "off": "shutdown"}[self.power]})
        self.asked.append((await request.json())["instance_uuid"])
        wrong = self.order(request.path_params["verb"].removeprefix("power_"))
        return JSONResponse({"code": "Success"} if wrong is None else {"code": "Failed", "msg": wrong})


KEYS = {"COMPSHARE_PUBLIC_KEY": "public", "COMPSHARE_PRIVATE_KEY": "private", "AUTODL_TOKEN": "token"}


@asynccontextmanager
async def rented(name: str, box: str | None = None) -> AsyncIterator[tuple[RentedBox, PowerDriver]]:
    """Run the recipe `name` with a played provider. `box`: the id of another box than the recipe's."""
    provider = RentedBox()
    routes = [
        Route("/", provider.compshare),
        Route("/api/v1/dev/instance/pro/{verb}", provider.autodl, methods=["GET", "POST"]),
    ]
    (declared,) = hosts(FOLDER / f"{name}.toml").values()
    assert isinstance(declared, CommandHostConfig)
    variable = {"compshare": "COMPSHARE_HOST", "autodl": "AUTODL_INSTANCE"}[name]
    async with serve_app(Starlette(routes=routes)) as url:
        env = {**declared.env, f"{name.upper()}_URL": url, **({variable: box} if box else {})}
        async with drivers({"gpu-1": structs.replace(declared, env=env)}, KEYS) as built:
            yield provider, built["gpu-1"]


@pytest.mark.parametrize("name", ["compshare", "autodl"])
async def test_a_rented_box_goes_on_and_off_when_there_is_stock(name: str) -> None:
    async with rented(name) as (provider, driver):
        sold_out = await call_driver(driver, PowerVerb.START, "call-1", TIMEOUT_S)
        assert sold_out.outcome is PowerCallOutcome.NO_CAPACITY
        assert "资源不足" in sold_out.why
        provider.stock = 1
        await assert_goes_on_and_off(driver)
        assert (await call_driver(driver, PowerVerb.STOP, "call-3", TIMEOUT_S)).outcome is PowerCallOutcome.DONE
        assert provider.orders == ["on", "on", "off"]


@pytest.mark.parametrize("name", ["compshare", "autodl"])
async def test_two_boxes_of_one_provider_are_two_declarations(name: str) -> None:
    for box in ("box-1", "box-2"):
        async with rented(name, box) as (provider, driver):
            await query_driver(driver, TIMEOUT_S)
            assert provider.asked == [box]


async def test_a_provider_that_does_not_answer_does_not_mean_that_the_box_is_off() -> None:
    (declared,) = hosts(FOLDER / "autodl.toml").values()
    assert isinstance(declared, CommandHostConfig)
    away = structs.replace(declared, env={**declared.env, "AUTODL_URL": "http://127.0.0.1:1"})
    async with drivers({"gpu-1": away}, KEYS) as built:
        assert (await query_driver(built["gpu-1"], TIMEOUT_S)).power is ReportedPower.UNKNOWN
        answer = await call_driver(built["gpu-1"], PowerVerb.START, "call-1", TIMEOUT_S)
    assert "AutoDL does not answer" in answer.why


async def test_a_missing_key_is_named() -> None:
    (declared,) = hosts(FOLDER / "autodl.toml").values()
    async with drivers({"gpu-1": declared}) as built:
        answer = await call_driver(built["gpu-1"], PowerVerb.START, "call-1", TIMEOUT_S)
    assert answer.outcome is PowerCallOutcome.FAILED
    assert "AUTODL_TOKEN is not set" in answer.why


@pytest.mark.parametrize("words", [[], ["autodl"], ["autodl", "on"], ["compshare", "start"]])
def test_the_program_shows_its_usage_where_arguments_are_missing(words: list[str]) -> None:
    argv = [sys.executable, "-m", "lamplighter", "power-driver", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={"PATH": OPERATORS_PATH})
    assert (done.returncode, "Usage: " in done.stderr, "Traceback" in done.stderr) == (2, True, False)


async def test_the_recipe_of_a_cloud_switches_a_machine_of_that_cloud() -> None:
    declared = hosts(FOLDER / "aws.toml")["gpu-3"]
    assert isinstance(declared, LibcloudHostConfig)
    with serve_fake_ec2(FakeEc2()) as port:
        rig = await anyio.to_thread.run_sync(Ec2DriverRig, FakeEc2(), port)
        options = {"host": "127.0.0.1", "port": port, "secure": False, "signature_version": "4"}
        here = structs.replace(declared, node=rig.node.id, options=options)
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        async with drivers({"gpu-3": here}, keys) as built:
            await assert_goes_on_and_off(built["gpu-3"])


PLAYED_PROGRAM = """#!/bin/sh
echo "$0 $*" >> "{log}"
exit {code}
"""


async def test_the_recipe_of_a_pc_switches_it_by_relay_by_packet_and_by_programs(tmp_path: Path) -> None:
    declared = hosts(FOLDER / "pc.toml")
    box = RemoteMachine()
    async with drivers({"gpu-1": declared["pc"]}, relay=FakeRelay(box)) as built:
        driver = built["gpu-1"]
        for verb in (PowerVerb.START, PowerVerb.STOP):
            assert (await call_driver(driver, verb, "call-1", TIMEOUT_S)).outcome is PowerCallOutcome.DONE
    # The relay was asked to start it only: the runner powers it off, and its silence means that it is off.
    assert (box.machine.power, driver.can_report_state) == (ReportedPower.ON, False)
    assert declared["pc"].runner_powers_off
    wol = declared["pc-beside"]
    assert isinstance(wol, WolHostConfig)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(TIMEOUT_S)
        near = structs.replace(wol, broadcast="127.0.0.1", port=listening.getsockname()[1])
        async with drivers({"pc-beside": near}) as built:
            await built["pc-beside"].start("call-1")
        assert await anyio.to_thread.run_sync(listening.recv, 200) == magic_packet(wol.mac)
    log = tmp_path / "log"
    for name, code in (("wakeonlan", 0), ("ping", 1)):
        program = tmp_path / name
        program.write_text(PLAYED_PROGRAM.format(log=log, code=code))
        program.chmod(0o755)
    async with drivers({"pc-by-hand": declared["pc-by-hand"]}, {"PATH": f"{tmp_path}:{OPERATORS_PATH}"}) as built:
        driver = built["pc-by-hand"]
        assert (await call_driver(driver, PowerVerb.START, "call-1", TIMEOUT_S)).outcome is PowerCallOutcome.DONE
        assert (await query_driver(driver, TIMEOUT_S)).power is ReportedPower.OFF
    assert [line.split("/")[-1] for line in log.read_text().splitlines()] == [
        "wakeonlan a4:bb:6d:00:11:22",
        "ping -c1 -W1 192.0.2.10",
    ]


README = FOLDER / "README.md"
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "acme-power"
version = "1"
"""


def toml_block(containing: str) -> str:
    return next(text for text in read_blocks(README, "toml") if containing in text)


@pytest.fixture(scope="module")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the driver of the README as a distribution; return the folder that it is in."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "acme_power.py").write_text(read_blocks(README, "python")[0])
    (source / "pyproject.toml").write_text(PROJECT + toml_block("entry-points"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", site, source], check=True)
    shutil.rmtree(source)
    return site


@pytest.mark.parametrize("module", ["acme", "acme_power:AcmeDriver"])
async def test_a_driver_of_an_installed_package_is_used(
    acme: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.syspath_prepend(str(acme))
    declared = load_settings(EdgeSettings, toml_block('driver = "module"'), {}).hosts["gpu-4"]
    named = structs.replace(declared, module=module)
    async with drivers({"gpu-4": named}, {"ACME_TOKEN": "token", "OTHER": "hidden"}) as built:
        driver: Any = built["gpu-4"]
        assert driver._token == "token"
        await assert_goes_on_and_off(built["gpu-4"])
    empty = structs.replace(named, options={"box": "sold-out"})
    async with drivers({"gpu-4": empty}, {"ACME_TOKEN": "token"}) as built:
        answer = await call_driver(built["gpu-4"], PowerVerb.START, "call-1", TIMEOUT_S)
    assert answer.outcome is PowerCallOutcome.NO_CAPACITY


@pytest.mark.parametrize(
    ("module", "environ", "said"),
    [
        ("acne", {"ACME_TOKEN": "a"}, "hosts.gpu-4.module: no installed package has the power driver acne"),
        ("acme", {}, "acme_power:AcmeDriver cannot be used (KeyError: 'ACME_TOKEN')"),
        ("acme_power:Nothing", {}, "cannot be used (AttributeError"),
        ("builtins:print", {}, "is not a power driver, it has no can_report_state"),
    ],
)
async def test_a_driver_that_cannot_be_used_is_named(
    acme: Path, monkeypatch: pytest.MonkeyPatch, module: str, environ: dict[str, str], said: str
) -> None:
    monkeypatch.syspath_prepend(str(acme))
    declared = load_settings(EdgeSettings, toml_block('driver = "module"'), {}).hosts["gpu-4"]
    with pytest.raises(DriverUnusable, match=re.escape(said)):
        async with drivers({"gpu-4": structs.replace(declared, module=module)}, environ):
            pass
