"""docs/rented.md and docs/home-pc.md, walked: their files and commands, with a played provider and a played machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import anyio
import pytest
from anyio import to_thread
from starlette.applications import Starlette
from starlette.routing import Route

from edge.power.drivers.generic import magic_packet
from tests.deploy.test_power_recipes import FOLDER as RECIPES
from tests.deploy.test_power_recipes import RentedBox
from tests.e2e.test_up import lamplighter, up
from tests.support.doc_pages import DOCS, ROOT, read_blocks, run_block
from tests.support.http_server import serve_app
from tests.support.reserved_ports import reserve_ports
from tests.support.wait import wait_for, wait_for_sync

pytestmark = pytest.mark.timeout(180)
RENTED, HOME_PC = DOCS / "rented.md", DOCS / "home-pc.md"
SCRIPTS = str(Path(sys.executable).parent)
MAC = "a4:bb:6d:00:11:22"


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a machine with Lamplighter in its PATH, and no setting of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LAMPLIGHTER_")}
    return {**kept, "PATH": f"{SCRIPTS}:{os.environ['PATH']}", **more}


def only_block(page: Path, language: str, containing: str) -> str:
    (block,) = [text for text in read_blocks(page, language) if containing in text]
    return block


def copy_images(folder: Path) -> None:
    """Copy the image of `echo`, for any user to read."""
    shutil.copytree(ROOT / "images" / "echo", folder / "images" / "echo")
    shutil.copytree(ROOT / "images" / "jobkit", folder / "images" / "jobkit")


def hosts_of(data: Path) -> dict[str, Any]:
    return {host["id"]: host for host in json.loads(lamplighter(data, "hosts", "--json").stdout)}


def is_online(data: Path, host: str) -> bool:
    return hosts_of(data)[host]["state"] == "online"


def runners_in(folder: Path) -> list[int]:
    """Return the processes of the runner that works in `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"runner" in (entry / "cmdline").read_bytes() and (entry / "cwd").resolve() == folder:
                found.append(int(entry.name))
    return found


def stop_runner(folder: Path) -> None:
    """Stop the machine's runner, as a machine does that loses its power."""
    for pid in runners_in(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for_sync(lambda: not runners_in(folder))


class BootingBox(RentedBox):
    """A box at the provider that runs start.sh when it boots, and ends all its processes when it is stopped."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.stock = 1
        self._folder = folder

    def order(self, verb: str) -> str | None:
        refused = super().order(verb)
        if verb == "on":
            subprocess.run([self._folder / "start.sh"], check=True, cwd="/", env=environment())
        else:
            stop_runner(self._folder)
        return refused


@asynccontextmanager
async def played_autodl(box: BootingBox) -> AsyncIterator[str]:
    routes = [Route("/api/v1/dev/instance/pro/{verb}", box.autodl, methods=["GET", "POST"])]
    async with serve_app(Starlette(routes=routes)) as url:
        yield url


@contextmanager
def public_up(folder: Path, **environ: str) -> Iterator[tuple[Path, int]]:
    """Run `up` as the pages show it, for machines on loopback; yield its data folder and the port of its HTTPS."""
    data = folder / "data"
    with pytest.MonkeyPatch.context() as patch, reserve_ports(2) as (tls_port, broker_port):
        for name, value in environ.items():
            patch.setenv(name, value)
        ports = ("--tls-port", str(tls_port), "--broker-port", str(broker_port))
        with up(data, "--no-runner", "--public", "127.0.0.1", "--listen", "127.0.0.1", *ports, tree=folder):
            yield data, tls_port


def test_the_page_shows_the_recipe() -> None:
    recipe = (RECIPES / "autodl.toml").read_text()
    shown = only_block(RENTED, "toml", "power-driver")
    assert shown == recipe[recipe.index("[hosts.") :]


def test_the_settings_that_the_pages_show_are_valid(tmp_path: Path) -> None:
    for number, text in enumerate(read_blocks(RENTED, "toml") + read_blocks(HOME_PC, "toml")):
        (tmp_path / f"{number}.toml").write_text(text)
    argv = [sys.executable, "-m", "lamplighter", "config", "check", *sorted(tmp_path.iterdir())]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment())
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.long(30)
async def test_a_rented_box_joins_is_stopped_and_boots_for_the_next_job(tmp_path: Path) -> None:
    server, place = tmp_path / "server", tmp_path / "box"
    for folder in (server, place):
        folder.mkdir(mode=0o755)
    copy_images(place)
    box = BootingBox(place)
    async with played_autodl(box) as url:
        named = f'env = {{ AUTODL_URL = "{url}", '
        recipe = only_block(RENTED, "toml", "power-driver").replace("env = { ", named)
        (server / "lamplighter.toml").write_text(recipe)
        (place / "lamplighter.toml").write_text(only_block(RENTED, "toml", "the box has no Docker"))
        await to_thread.run_sync(run_block, "sh", only_block(RENTED, "sh", "start.sh <<"), place)
        served = public_up(server, AUTODL_TOKEN="token")
        data, _ = await to_thread.run_sync(served.__enter__)
        try:
            added = await to_thread.run_sync(lamplighter, data, "hosts", "add", "gpu-2")
            (place / "token.txt").write_text(added.stdout.split()[-1])
            box.power = "on"
            join = only_block(RENTED, "sh", "--join")
            await anyio.run_process(["sh", "-c", join], cwd=place, env=environment(), stdout=DEVNULL, stderr=DEVNULL)

            async def is_ready() -> bool:
                return await to_thread.run_sync(is_online, data, "gpu-2")

            await wait_for(is_ready, timeout_s=60)
            submit = ("submit", "echo", "--text", "hi", "--wait", "--json")
            first = await to_thread.run_sync(lamplighter, data, *submit)
            assert json.loads(first.stdout)["status"] == "succeeded", first.stderr
            await to_thread.run_sync(lamplighter, data, "power", "gpu-2", "off")

            async def is_off() -> bool:
                return (await to_thread.run_sync(hosts_of, data))["gpu-2"]["state"] == "off"

            await wait_for(is_off, timeout_s=90)
            assert not runners_in(place)
            await to_thread.run_sync(lamplighter, data, "power", "gpu-2", "auto")
            second = await to_thread.run_sync(lamplighter, data, *submit)
            assert json.loads(second.stdout)["status"] == "succeeded", second.stderr
            assert box.orders == ["off", "on"]
        finally:
            stop_runner(place)
            await to_thread.run_sync(served.__exit__, None, None, None)


@pytest.mark.long(25)
def test_a_pc_at_home_is_woken_by_the_relay_and_told_to_power_off(tmp_path: Path) -> None:
    server, home, pc = tmp_path / "server", tmp_path / "home", tmp_path / "pc"
    for folder in (server, home, pc):
        folder.mkdir(mode=0o755)
    copy_images(pc)
    declared = only_block(HOME_PC, "toml", "wake_only")
    (server / "lamplighter.toml").write_text("\n".join(line for line in declared.splitlines() if "quiet" not in line))
    off = pc / "is-off"
    poweroff = only_block(HOME_PC, "toml", "poweroff =").replace('"systemctl", "poweroff"', f'"touch", "{off}"')
    (pc / "lamplighter.toml").write_text('engine = "process"\n' + poweroff)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as card, public_up(server) as (data, _):
        card.bind(("127.0.0.1", 0))
        card.settimeout(60)
        relay = only_block(HOME_PC, "toml", 'driver = "wol"')
        near = f'broadcast = "127.0.0.1"\nport = {card.getsockname()[1]} #'
        (home / "lamplighter.toml").write_text(relay.replace("broadcast =", near))
        add_pc, add_relay = only_block(HOME_PC, "sh", "hosts add").splitlines()
        token, relay_token = (lamplighter(data, *line.split()[1:]).stdout.split()[-1] for line in (add_pc, add_relay))
        script = only_block(HOME_PC, "sh", "relay --join").replace("TOKEN", relay_token)
        with machine(home, script.replace("lamplighter relay", "exec lamplighter relay")):
            job = json.loads(lamplighter(data, "submit", "echo", "--id", "first", "--json").stdout)
            assert job["id"] == "first"
            assert card.recv(200) == magic_packet(MAC)
            start = only_block(HOME_PC, "sh", "runner --join").replace("TOKEN", token)
            with machine(pc, f"exec {start}"):
                done = lamplighter(data, "watch", "first")
                assert done.returncode == 0, done.stderr
                lamplighter(data, "power", "pc", "off")
                wait_for_sync(off.exists, timeout_s=60)
    assert "relay_request_answered" in (home / "log").read_text()


@contextmanager
def machine(folder: Path, script: str) -> Iterator[None]:
    """Run a script of a page on the machine of `folder` until the block ends; its output is in `log`."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["bash", "-euc", script], cwd=folder, env=environment(), stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)
