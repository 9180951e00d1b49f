"""Boxes behind their switches, and the installation that they have joined over TLS from another network namespace."""

import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from bus.connection import open_edge
from bus.port import Bus
from bus.server import Server
from bus.settings import BrokerSettings
from edge.certificates import provide
from edge.services.clock import utc_now
from lamplighter import AsyncClient, things, wire
from schemas.host import Presence
from schemas.power import PowerRecord
from schemas.view import JobView
from schemas.words import ACTIVE, WAITING
from tests import job_user
from tests.e2e.conftest import Lit
from tests.e2e.installation import COMPILED, IMAGES, ROOT, Installation, Process, ready, until
from tests.e2e.network import EDGE, Network
from tests.e2e.power.machine import lives, power

BRISK = "tests.e2e.power.brisk"
PATIENCE_S = 100.0
TLS_PORT = 8443
RULES = {
    "min_on": 0.5,
    "idle_after": 0.8,
    "boot_timeout": 8.0,
    "stop_timeout": 3.0,
    "fallback_after": 1.0,
    "timeout": 10.0,
}


class Plan(Struct, frozen=True):
    """What a box does with orders: `no_capacity` starts are refused, then `boots_that_fail` bring no runner.

    `boot_s`: seconds before its runner is started. `hangs`: it never says that it is off.
    """

    argv: tuple[str, ...]
    environ: dict[str, str]
    cwd: str
    boot_s: float = 0.0
    no_capacity: int = 0
    boots_that_fail: int = 0
    hangs: bool = False


class Box:
    """One machine. `pressed` are the orders its switch has had."""

    def __init__(self, host: str, folder: Path) -> None:
        self.host = host
        self.folder = folder

    @property
    def pressed(self) -> list[str]:
        return [verb for verb, _ in self.presses]

    @property
    def presses(self) -> list[tuple[str, float]]:
        """With the time of each, in seconds since 1970."""
        log = self.folder / "pressed"
        words = (line.split() for line in log.read_text().splitlines()) if log.exists() else ()
        return [(verb, float(at)) for verb, at in words]

    def plan(self, **changed: Any) -> None:
        """From now on it does so; what is not named is as at first, and the log of its switch is empty."""
        kept = msgspec.json.decode((self.folder / "plan.json").read_bytes(), type=Plan)
        self._write(replace(Plan(kept.argv, kept.environ, kept.cwd), **changed))

    def build(self, plan: Plan) -> None:
        self.folder.mkdir()
        self._write(plan)

    def _write(self, plan: Plan) -> None:
        (self.folder / "plan.json").write_bytes(msgspec.json.encode(plan))
        (self.folder / "pressed").unlink(missing_ok=True)

    def declaration(self, **rules: Any) -> str:
        """Its `[hosts.…]` block."""
        verbs = ("on", "off", "state")
        machine = str(Path(__file__).with_name("machine.py"))
        argv = {verb: [sys.executable, machine, str(self.folder), verb] for verb in verbs}
        given = {"driver": "command", **argv, **RULES, **rules}
        lines = (
            f"{name} = {value if isinstance(value, str) and value[0] == '{' else json.dumps(value)}\n"
            for name, value in given.items()
        )
        return f"[hosts.{self.host}]\n{''.join(lines)}"

    def unplug(self) -> None:
        """Whatever runs in it ends."""
        _, pid = power(self.folder)
        if pid and lives(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Street(Installation):
    """Edge and broker on one side, reached by others with TLS; the boxes on the other."""

    def __init__(self, folder: Path, net: Network, boxes: Sequence[Box]) -> None:
        super().__init__(folder, "process", None, {"edge": BRISK})
        self.net = net
        self.keys: dict[str, str] = {}
        self.boxes = {box.host: box for box in boxes}
        self.tls = provide(folder / "tls", [EDGE], utc_now())
        self.server = Server(folder / "broker", listen=f"{EDGE}:-1", tls=self.tls)

    @asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        async with open_edge(self._edge_broker()) as bus:
            yield bus

    def _edge_broker(self) -> BrokerSettings:
        server = self.server
        return BrokerSettings(server.url, "edge", server.passwords["edge"], server.monitor, pin=str(self.tls.cert))

    def public(self) -> dict[str, str]:
        """The edge's settings that let others join."""
        return {
            "LAMPLIGHTER_BROKER__PIN": str(self.tls.cert),
            "LAMPLIGHTER_PUBLIC__LISTEN": f"{EDGE}:{TLS_PORT}",
            "LAMPLIGHTER_PUBLIC__URL": f"https://{EDGE}:{TLS_PORT}",
            "LAMPLIGHTER_PUBLIC__BROKER": self.server.url,
            "LAMPLIGHTER_PUBLIC__CERT": str(self.tls.cert),
            "LAMPLIGHTER_PUBLIC__KEY": str(self.tls.key),
            "LAMPLIGHTER_JOINING__FOLDER": str(self.folder / "broker"),
            "LAMPLIGHTER_JOINING__RELOAD": json.dumps(self.server.reload),
        }

    async def light(self) -> None:
        """Start the edge; also again, after it was killed."""
        await self.start_edge((IMAGES / "echo",), **self.public())

    @asynccontextmanager
    async def another(self) -> AsyncIterator[str]:
        """A second edge at the same broker, with the same files; its URL."""
        data = self.folder / "second"
        data.mkdir()
        (data / "assets").symlink_to(self.folder / "edge" / "assets")
        with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
            environ = self.edge._environ | {
                "LAMPLIGHTER_DATA": str(data),
                "LAMPLIGHTER_FD": str(listening.fileno()),
                "LAMPLIGHTER_PUBLIC__LISTEN": "",
            }
            edge = Process("edge", environ, self.folder / "second.log", (listening.fileno(),), BRISK)
            await edge.start()
            try:
                yield f"http://127.0.0.1:{listening.getsockname()[1]}"
            finally:
                await edge.stop()

    async def let_in(self, admin: AsyncClient) -> None:
        """Every box joins: its runner starts with the token of `hosts add`, as it would at a first boot."""
        for box in self.boxes.values():
            token = (await admin.call(wire.add_host(box.host)))["token"]
            environ = COMPILED | {
                "LAMPLIGHTER_CONFIG": os.devnull,
                "LAMPLIGHTER_DATA": str(self.folder / f"data-{box.host}"),
                "LAMPLIGHTER_ENDPOINTS": json.dumps([str(IMAGES / "echo")]),
                "LAMPLIGHTER_ENGINE": "process",
                "LAMPLIGHTER_INSTALLATION": self.name,
                "LAMPLIGHTER_GPU__WATCH": "0",
                "LAMPLIGHTER_WARM__ON": "0",
                "LAMPLIGHTER_GRACE_S": "2",
                "LAMPLIGHTER_PACE__PRESENCE_S": "0.5",
                "LAMPLIGHTER_LOG_FORMAT": "json",
                **job_user.settings(),
            }
            argv = (*self.net.at_host, sys.executable, "-m", BRISK, "runner", "--join", token)
            box.build(Plan(argv, environ, str(ROOT)))

    async def close(self) -> None:
        for box in self.boxes.values():
            box.unplug()
        await super().close()

    def tail(self) -> str:
        """With what the boxes said."""
        logs = (self.folder / host / "box.log" for host in self.boxes)
        said = (f"== {log.parent.name}\n{log.read_text(errors='replace')[-4000:]}" for log in logs if log.exists())
        return "\n".join((super().tail(), *said))


class Scene(Struct, frozen=True):
    """A street with the light on, and what a test does in it."""

    street: Street
    lit: Lit

    @property
    def box(self) -> Box:
        """The first."""
        return next(iter(self.street.boxes.values()))

    async def record(self, box: Box | None = None) -> PowerRecord:
        row = await self.lit.bus.power.get((box or self.box).host)
        assert row is not None
        return row.value

    async def stands(self, *states: str, box: Box | None = None, within_s: float = PATIENCE_S) -> PowerRecord:
        """Wait until the host stands in one of `states`."""

        async def there() -> PowerRecord | None:
            record = await self.record(box)
            return record if record.state in states else None

        found: PowerRecord = await until(there, within_s, every_s=0.04)
        return found

    async def presence(self) -> Presence:
        row = await self.lit.bus.hosts.get(self.box.host)
        assert row is not None
        return row.value

    async def beats(self, seconds: float) -> None:
        """Return when the host's heart has gone on for so long, by its own clock: longer than `idle_after`."""
        began = (await self.presence()).at

        async def beaten() -> bool:
            return ((await self.presence()).at - began).total_seconds() >= seconds

        await until(beaten)

    async def submit(self, text: str = "hello", **given: Any) -> JobView:
        return await self.lit.ann.submit("echo", text=text, **given)

    async def done(self, *jobs: JobView) -> list[JobView]:
        """All of them, succeeded."""
        ended = [await self.lit.ann.wait(job.id) for job in jobs]
        assert {job.status for job in ended} == {"succeeded"}
        return ended

    async def dark(self) -> None:
        """Nothing waits and everything is off, whatever the scene before has left."""
        async for job in self.lit.ann.jobs():
            if job.status in WAITING | ACTIVE:
                await self.lit.ann.cancel(job.id)
        for box in self.street.boxes.values():
            box.plan()
            if (await self.record(box)).state == "fault":
                await self.lit.admin.call(things.power(box.host, "auto", None))
            await self.stands("off", box=box)
            box.plan()

    async def ordered(self, *verbs: str, box: Box | None = None) -> None:
        """Wait until the box has had these orders, and it must have had no others."""
        found = box or self.box

        async def had() -> bool:
            return len(found.pressed) >= len(verbs)

        await until(had, PATIENCE_S)
        assert found.pressed == list(verbs)


@asynccontextmanager
async def street(folder: Path, net: Network, boxes: Sequence[tuple[str, dict[str, Any]]]) -> AsyncIterator[Scene]:
    """Boxes by name and rules, all joined, none of them ever on."""
    made = {name: Box(name, folder / name) for name, _ in boxes}
    (folder / "lamplighter.toml").write_text("".join(made[name].declaration(**rules) for name, rules in boxes))
    installation = Street(folder, net, tuple(made.values()))
    keys = installation.keys = await installation.open()
    try:
        await installation.light()
        async with (
            AsyncClient(installation.url, keys["ann"], cache=folder / "ann.json") as ann,
            AsyncClient(installation.url, keys["admin"], cache=folder / "admin.json") as admin,
            installation.bus() as bus,
        ):
            await ready(ann)
            await installation.let_in(admin)
            yield Scene(installation, Lit(installation, ann, admin, bus))
    finally:
        await installation.close()
