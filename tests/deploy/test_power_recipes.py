"""The recipes can be read, name programs that are there, and the rented boxes' script keeps the exit contract."""

import os
import re
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec import convert
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from edge.power.driver_calls import call_driver, query_driver
from edge.power.drivers.command import CommandDriver
from schemas.host_config import AnyHostConfig, CommandHostConfig
from schemas.ids import Token
from schemas.power import PowerCallOutcome, PowerVerb, ReportedPower
from tests.support.http_server import serve_app

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deploy" / "power"
RECIPES = sorted(FOLDER.glob("*.toml"))
DELETING = re.compile(r"terminate|release|delete|destroy|remove", re.IGNORECASE)


def hosts(recipe: Path) -> dict[str, AnyHostConfig]:
    return convert(tomllib.loads(recipe.read_text())["hosts"], dict[Token, AnyHostConfig], strict=False)


def test_there_is_a_recipe_for_each_of_them() -> None:
    assert [recipe.stem for recipe in RECIPES] == ["autodl", "aws", "compshare", "pc"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_can_be_read_and_never_deletes(recipe: Path) -> None:
    declared = hosts(recipe)
    assert declared
    for host in declared.values():
        argvs = [host.on, host.off, host.state] if isinstance(host, CommandHostConfig) else []
        for argv in filter(None, argvs):
            assert not DELETING.search(" ".join(argv))
            assert all((ROOT / word).is_file() for word in argv if word.startswith("deploy/"))


@pytest.mark.parametrize("recipe", ["autodl", "compshare"])
def test_a_rented_box_is_given_all_that_its_program_reads(recipe: str) -> None:
    """Which box in `env`, so that there may be two of one provider; the keys, which stand in no file, by `inherit`."""
    head = (FOLDER / "rented.py").read_text().split('"""')[1]
    read = set(re.findall(rf"{recipe.upper()}_[A-Z_]+", head))
    (host,) = hosts(FOLDER / f"{recipe}.toml").values()
    assert isinstance(host, CommandHostConfig)
    assert set(host.env) | set(host.inherit) == read
    assert all(name.endswith(("_KEY", "_TOKEN")) for name in host.inherit)


def test_all_recipes_fit_into_one_file() -> None:
    names = [name for recipe in RECIPES for name in hosts(recipe)]
    assert len(names) == len(set(names))


class RentedBox:
    """CompShare and AutoDL as far as the script knows them: one box, and stock that runs out."""

    def __init__(self) -> None:
        self.power = "off"
        self.stock = 0
        self.orders: list[str] = []

    def order(self, verb: str) -> str | None:
        """What is wrong, or None."""
        self.orders.append(verb)
        if verb == "on" and not self.stock:
            return "该机型资源不足，请稍后再试"
        self.power = verb
        return None

    async def compshare(self, request: Request) -> JSONResponse:
        action = request.query_params["Action"]
        assert len(request.query_params["Signature"]) == 40
        if action == "DescribeCompShareInstance":
            state = {"on": "Running", "off": "Stopped"}[self.power]
            return JSONResponse({"RetCode": 0, "UHostSet": [{"State": state}]})
        wrong = self.order("on" if action == "StartCompShareInstance" else "off")
        return JSONResponse({"RetCode": 0} if wrong is None else {"RetCode": 8357, "Message": wrong})

    async def autodl(self, request: Request) -> JSONResponse:
        assert request.headers["authorization"] == "token"
        if request.method == "GET":
            assert request.query_params["instance_uuid"] == "pro-1"
            return JSONResponse({"code": "Success", "data": {"on": "running", "off": "shutdown"}[self.power]})
        assert (await request.json())["instance_uuid"] == "pro-1"
        wrong = self.order(request.path_params["verb"].removeprefix("power_"))
        return JSONResponse({"code": "Success"} if wrong is None else {"code": "Failed", "msg": wrong})


@asynccontextmanager
async def rented(name: str) -> AsyncIterator[tuple[RentedBox, CommandDriver]]:
    provider = RentedBox()
    routes = [
        Route("/", provider.compshare),
        Route("/api/v1/dev/instance/pro/{verb}", provider.autodl, methods=["GET", "POST"]),
    ]
    async with serve_app(Starlette(routes=routes)) as url:
        given = {
            "COMPSHARE_URL": url,
            "AUTODL_URL": url,
            "COMPSHARE_PUBLIC_KEY": "public",
            "COMPSHARE_PRIVATE_KEY": "private",
            "COMPSHARE_REGION": "cn-wlcb",
            "COMPSHARE_ZONE": "cn-wlcb-01",
            "COMPSHARE_HOST": "uhost-1",
            "AUTODL_TOKEN": "token",
            "AUTODL_INSTANCE": "pro-1",
        }
        argv = {verb: (sys.executable, str(FOLDER / "rented.py"), name, verb) for verb in ("on", "off", "state")}
        yield provider, CommandDriver("gpu-1", CommandHostConfig(**argv, env=given), os.environ)


@pytest.mark.parametrize("name", ["compshare", "autodl"])
async def test_a_rented_box_goes_on_and_off_when_there_is_stock(name: str) -> None:
    async with rented(name) as (provider, driver):
        sold_out = await call_driver(driver, PowerVerb.START, "call-1", 20)
        assert sold_out.outcome is PowerCallOutcome.NO_CAPACITY
        assert "资源不足" in sold_out.why
        provider.stock = 1
        for verb, power in (
            (PowerVerb.START, ReportedPower.ON),
            (PowerVerb.START, ReportedPower.ON),
            (PowerVerb.STOP, ReportedPower.OFF),
        ):
            assert (await call_driver(driver, verb, "call-2", 20)).outcome is PowerCallOutcome.DONE
            assert await query_driver(driver, 20) is power
        assert provider.orders == ["on", "on", "off"]


async def test_a_missing_key_is_named() -> None:
    driver = CommandDriver(
        "gpu-1",
        CommandHostConfig(on=(sys.executable, str(FOLDER / "rented.py"), "autodl", "on")),
        {"PATH": os.environ["PATH"]},
    )
    answer = await call_driver(driver, PowerVerb.START, "call-1", 20)
    assert answer.outcome is PowerCallOutcome.FAILED
    assert "AUTODL_INSTANCE" in answer.why
