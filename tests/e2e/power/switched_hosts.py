"""Hosts with a power switch, and the installation that they have joined over TLS from another network namespace."""

import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from edge.core.clock import utc_now
from edge.server.certificate import load_or_create_certificate
from lamplighter import AsyncClient, api
from schemas.host import HostHeartbeat
from schemas.job import ACTIVE_STATUSES, WAITING_STATUSES
from schemas.job_view import JobView
from schemas.power import PowerRecord
from tests.e2e.power.host_program import HURRY, is_alive, power
from tests.support.bytecode import BYTECODE_ENVIRON
from tests.support.installation import EDGE as EDGE_NAME
from tests.support.installation import ENDPOINTS, IMAGES, ROOT, Installation, RunningInstallation, run_installation
from tests.support.namespaces import EDGE, HostNetwork
from tests.support.wait import retry_bus_call, wait_for

FAST_CLOCK_MODULE = "tests.e2e.power.fast_clock"
STATE_TIMEOUT_S = 100.0
TLS_PORT = 8443
OFFERED = (IMAGES / "echo",)
SECOND_EDGE = "second"
RULES = {
    "min_on": 0.5,
    "idle_after": 0.8,
    "boot_timeout": 60.0,
    "stop_timeout": 60.0,
    "fallback_after": 1.0,
    "timeout": 10.0,
}


class HostPlan(Struct, frozen=True):
    """How a host answers power calls.

    The first `no_capacity` starts are rejected, then `boots_that_fail` starts bring no runner. `boot_s`: seconds before
    its runner starts. `hangs`: it never reports that it is off.
    """

    argv: tuple[str, ...]
    environ: dict[str, str]
    cwd: str
    boot_s: float = 0.0
    no_capacity: int = 0
    boots_that_fail: int = 0
    hangs: bool = False


class SwitchedHost:
    """One machine. `calls` are the power calls that its driver program has received."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder

    @property
    def calls(self) -> list[str]:
        return [verb for verb, _ in self.timed_calls]

    @property
    def timed_calls(self) -> list[tuple[str, float]]:
        """The calls with their times, in seconds since 1970."""
        log = self.folder / "pressed"
        words = (line.split() for line in log.read_text().splitlines()) if log.exists() else ()
        return [(verb, float(at)) for verb, at in words]

    def plan(self, **changed: Any) -> None:
        """Set the host's behaviour; what is not named is as at first. The log of calls becomes empty."""
        kept = msgspec.json.decode((self.folder / "plan.json").read_bytes(), type=HostPlan)
        self._write(replace(HostPlan(kept.argv, kept.environ, kept.cwd), **changed))

    def build(self, plan: HostPlan) -> None:
        self.folder.mkdir()
        self._write(plan)

    def _write(self, plan: HostPlan) -> None:
        (self.folder / "plan.json").write_bytes(msgspec.json.encode(plan))
        (self.folder / "pressed").unlink(missing_ok=True)

    def declaration(self, **rules: Any) -> str:
        """Return its `[hosts.…]` section."""
        verbs = ("on", "off", "state")
        machine = str(Path(__file__).with_name("host_program.py"))
        argv = {verb: [sys.executable, machine, str(self.folder), verb] for verb in verbs}
        given = {"driver": "command", **argv, **RULES, **rules}
        lines = (
            f"{name} = {value if isinstance(value, str) and value[0] == '{' else json.dumps(value)}\n"
            for name, value in given.items()
        )
        return f"[hosts.{self.name}]\n{''.join(lines)}"

    def unplug(self) -> None:
        """Kill whatever runs in it."""
        _, pid = power(self.folder)
        if pid and is_alive(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class JoinableInstallation(Installation):
    """An edge with a fast clock, and a broker, at `address`: hosts join with a token over TLS, at port `tls_port`."""

    def __init__(self, folder: Path, address: str, tls_port: int) -> None:
        self._certificate = load_or_create_certificate(folder / "tls", [address], utc_now())
        self._public = f"{address}:{tls_port}"
        programs = {"edge": FAST_CLOCK_MODULE}
        super().__init__(folder, "process", programs=programs, broker_host=address, tls=self._certificate)

    def edge_environ(self, endpoints: Sequence[Path] = ENDPOINTS, name: str = EDGE_NAME) -> dict[str, str]:
        """The settings of an edge that lets hosts join."""
        return super().edge_environ(endpoints, name) | {
            "LAMPLIGHTER_PUBLIC__LISTEN": self._public,
            "LAMPLIGHTER_PUBLIC__URL": f"https://{self._public}",
            "LAMPLIGHTER_PUBLIC__BROKER": self.server.url,
            "LAMPLIGHTER_PUBLIC__CERT": str(self._certificate.cert),
            "LAMPLIGHTER_PUBLIC__KEY": str(self._certificate.key),
            "LAMPLIGHTER_ENROLLMENT__NATS_CONF_DIR": str(self.folder / "broker"),
            "LAMPLIGHTER_ENROLLMENT__RELOAD_COMMAND": json.dumps(self.server.reload_command),
        }

    def joining_environ(self, host: str) -> dict[str, str]:
        """The settings of a runner that joins: all but what comes with its token, its name, and its folder."""
        settings = self.runner_environ(host, OFFERED)
        enrolled = ("LAMPLIGHTER_BROKER__", "LAMPLIGHTER_EDGE__", "LAMPLIGHTER_HOST", "LAMPLIGHTER_DATA")
        return {
            **{name: value for name, value in settings.items() if not name.startswith(enrolled)},
            "LAMPLIGHTER_CONFIG": os.devnull,
            "LAMPLIGHTER_PACE__PRESENCE_S": "0.5",
            "LAMPLIGHTER_LOG_FORMAT": "json",
        }


class SwitchedInstallation(JoinableInstallation):
    """Edge and broker on one side of the network, reached by others with TLS; the hosts on the other side."""

    def __init__(self, folder: Path, net: HostNetwork, hosts: Sequence[SwitchedHost]) -> None:
        super().__init__(folder, EDGE, TLS_PORT)
        self.net = net
        self.hosts = {host.name: host for host in hosts}

    async def start_edge_again(self) -> None:
        """Start the edge again, after it was killed."""
        await self.start_edge(OFFERED)

    @asynccontextmanager
    async def start_second_edge(self) -> AsyncIterator[str]:
        """Run a second edge at the same broker, with the same files; its URL."""
        data = self.folder / SECOND_EDGE
        data.mkdir()
        (data / "assets").symlink_to(self.folder / "edge" / "assets")
        with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
            fd = listening.fileno()
            environ = self.edge_environ(OFFERED, SECOND_EDGE) | {
                "LAMPLIGHTER_FD": str(fd),
                "LAMPLIGHTER_PUBLIC__LISTEN": "",
            }
            edge = await self.start_service("edge", SECOND_EDGE, environ, fds=(fd,))
            try:
                yield f"http://127.0.0.1:{listening.getsockname()[1]}"
            finally:
                await edge.stop()

    async def enroll_hosts(self, admin: AsyncClient) -> None:
        """Let every host join: its runner starts with the token of `hosts add`, as at a first boot."""
        for host in self.hosts.values():
            token = (await admin.call(api.add_host(host.name)))["token"]
            data = {"LAMPLIGHTER_DATA": str(self.folder / f"data-{host.name}")}
            environ = BYTECODE_ENVIRON | self.joining_environ(host.name) | data
            argv = (*self.net.at_host, sys.executable, "-m", FAST_CLOCK_MODULE, "runner", "--join", token)
            host.build(HostPlan(argv, environ, str(ROOT)))

    async def close(self) -> None:
        for host in self.hosts.values():
            host.unplug()
        await super().close()


class PowerScenario(Struct, frozen=True):
    """An installation with switched hosts, and the steps that a test takes in it."""

    installation: SwitchedInstallation
    running: RunningInstallation

    @property
    def host(self) -> SwitchedHost:
        """The first host."""
        return next(iter(self.installation.hosts.values()))

    @contextmanager
    def hurry(self) -> Iterator[None]:
        """Let a first boot, and a stop, be overdue after a second while the block runs."""
        file = self.installation.folder / EDGE_NAME / HURRY
        file.touch()
        try:
            yield
        finally:
            file.unlink()

    async def record(self, host: SwitchedHost | None = None) -> PowerRecord:
        row = await retry_bus_call(lambda: self.running.bus.power_records.get((host or self.host).name))
        assert row is not None
        return row.value

    async def wait_for_state(
        self, *states: str, host: SwitchedHost | None = None, timeout_s: float = STATE_TIMEOUT_S
    ) -> PowerRecord:
        """Wait until the host is in one of `states`."""

        async def there() -> PowerRecord | None:
            record = await self.record(host)
            return record if record.state in states else None

        found: PowerRecord = await wait_for(there, timeout_s=timeout_s, interval_s=0.04)
        return found

    async def presence(self) -> HostHeartbeat:
        row = await retry_bus_call(lambda: self.running.bus.heartbeats.get(self.host.name))
        assert row is not None
        return row.value

    async def wait_for_heartbeats(self, seconds: float) -> None:
        """Wait until the host has sent heartbeats for so long by its own clock, longer than `idle_after`."""
        began = (await self.presence()).at

        async def beaten() -> bool:
            return ((await self.presence()).at - began).total_seconds() >= seconds

        await wait_for(beaten)

    async def submit(self, text: str = "hello", **given: Any) -> JobView:
        return await self.running.ann.submit("echo", text=text, **given)

    async def wait_until_succeeded(self, *jobs: JobView) -> list[JobView]:
        """Wait until all of them have succeeded."""
        ended = [await self.running.ann.wait(job.id) for job in jobs]
        assert {job.status for job in ended} == {"succeeded"}
        return ended

    async def wait_until_all_off(self) -> None:
        """Cancel all jobs, and wait until every host is off."""
        async for job in self.running.ann.jobs():
            if job.status in WAITING_STATUSES | ACTIVE_STATUSES:
                await self.running.ann.cancel(job.id)
        for host in self.installation.hosts.values():
            host.plan()
            if (await self.record(host)).state == "fault":
                await self.running.admin.call(api.set_power(host.name, "auto", None))
            await self.wait_for_state("off", host=host)
            host.plan()

    async def wait_for_calls(self, *verbs: str, host: SwitchedHost | None = None) -> None:
        """Wait for these power calls, and assert that there were no others."""
        found = host or self.host

        async def had() -> bool:
            return len(found.calls) >= len(verbs)

        await wait_for(had, timeout_s=STATE_TIMEOUT_S)
        assert found.calls == list(verbs)


@asynccontextmanager
async def run_switched_installation(
    folder: Path, net: HostNetwork, hosts: Sequence[tuple[str, dict[str, Any]]], pools: str = ""
) -> AsyncIterator[PowerScenario]:
    """Run an installation with hosts by name and rules; all have joined, none was ever on.

    `pools`: the `[pools.…]` sections of its settings.
    """
    made = {name: SwitchedHost(name, folder / name) for name, _ in hosts}
    declared = "".join(made[name].declaration(**rules) for name, rules in hosts)
    (folder / "lamplighter.toml").write_text(declared + pools)
    installation = SwitchedInstallation(folder, net, tuple(made.values()))
    async with run_installation(installation, OFFERED) as running:
        await installation.enroll_hosts(running.admin)
        yield PowerScenario(installation, running)
