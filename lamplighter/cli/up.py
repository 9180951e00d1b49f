"""`lamplighter up`: broker, edge and runner together on this machine, on loopback, until stopped."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import anyio
import click
import httpx
import msgspec
import structlog
from msgspec import Struct
from rich.console import Console

from bus.interface import BrokerUnreachable
from bus.open import open_edge
from bus.secret_files import PRIVATE_UMASK, make_private_folder
from bus.server.process import run_server
from bus.settings import BrokerSettings
from edge.settings import EdgeSettings
from lamplighter.cli import display
from lamplighter.cli.context import ADDRESS_FILE, DEFAULT_DATA_DIR, UNREACHABLE, USAGE, EdgeAddress, format_command
from lamplighter.cli.data_dir import (
    BROKER_FILE,
    LocalKeys,
    ensure_keys,
    installation_id,
    listen_on_loopback,
    lock_or_exit,
    write_private_json,
)
from lamplighter.cli.process_setup import configure_logging, exit_on_error
from lamplighter.cli.public_access import PublicAccess, PublicOptions, public_options
from lamplighter.cli.supervisor import BrokerSupervisor, ChildMisconfigured, ChildRegistry, SupervisedProcess
from runner.settings import RunnerSettings
from schemas.environment import DOCKER_PREFIXES, GPU_PREFIXES, build_child_environment, bypass_proxies_for_loopback
from schemas.settings_loader import SETTING_PREFIX, select_variables

IMAGES = Path(__file__).parents[2] / "images"
READY_TIMEOUT_S = 60.0
HEYGEM_VARIABLE = (
    "LAMPLIGHTER_HEYGEM__ENABLED"  # on here unless it was switched off: there is no other HeyGem server to meet
)
KEYLESS_PORT_VARIABLE = "LAMPLIGHTER_HEYGEM__KEYLESS_PORT"
READY_POLL_INTERVAL_S = 0.05
EDGE_STOP_TIMEOUT_S = 10.0
RUNNER_STOP_MARGIN_S = 15.0  # a drain that was given its grace also stops and releases what is left

log = structlog.get_logger()


class UpOptions(Struct, frozen=True, kw_only=True):
    """What `up` was asked for."""

    port: int
    data: Path
    engine: str
    endpoints: tuple[Path, ...]
    grace_s: float
    slots: int
    no_runner: bool
    config: Path | None
    as_json: bool
    easy_port: int | None = None


def _edge_environ(options: UpOptions, opened: PublicAccess, fd: int) -> dict[str, str]:
    """All of ours that is no setting: switches and stores take their credentials from variables of any name."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(SETTING_PREFIX)},
        **select_variables(EdgeSettings, os.environ),
        **_shared_environ(options, opened, "edge"),
        **opened.edge_environ(),
        "LAMPLIGHTER_FD": str(fd),
        "LAMPLIGHTER_DATA": str(options.data / "edge"),
        "LAMPLIGHTER_BROKER__MONITOR": opened.server.monitor_url,
        HEYGEM_VARIABLE: os.environ.get(HEYGEM_VARIABLE, "1"),
        **({KEYLESS_PORT_VARIABLE: str(options.easy_port)} if options.easy_port else {}),
    }


def _runner_environ(options: UpOptions, opened: PublicAccess, url: str, keys: LocalKeys) -> dict[str, str]:
    return {
        **build_child_environment(os.environ, prefixes=GPU_PREFIXES + DOCKER_PREFIXES),
        **select_variables(RunnerSettings, os.environ),
        **_shared_environ(options, opened, "runner"),
        "LAMPLIGHTER_DATA": str(options.data / "runner"),
        "LAMPLIGHTER_EDGE__URL": url,
        "LAMPLIGHTER_EDGE__KEY": keys.runner,
        "LAMPLIGHTER_ENGINE": options.engine,
        "LAMPLIGHTER_GRACE_S": str(options.grace_s),
        "LAMPLIGHTER_SLOTS": str(options.slots),
        "LAMPLIGHTER_INSTALLATION": installation_id(options.data),
    }


def _shared_environ(options: UpOptions, opened: PublicAccess, user: str) -> dict[str, str]:
    folders = [str(folder.resolve()) for folder in options.endpoints]
    return opened.shared_environ() | {
        "LAMPLIGHTER_CONFIG": str(options.config.resolve()) if options.config else os.devnull,
        "LAMPLIGHTER_BROKER__URL": opened.server.url,
        "LAMPLIGHTER_BROKER__USER": user,
        "LAMPLIGHTER_BROKER__PASSWORD": opened.server.passwords[user],
        "LAMPLIGHTER_ENDPOINTS": msgspec.json.encode(folders).decode(),
    }


def _broker_settings(opened: PublicAccess) -> BrokerSettings:
    server, password = opened.server, opened.server.passwords["edge"]
    return BrokerSettings(url=server.url, user="edge", password=password, monitor=server.monitor_url, pin=opened.pin)


class StartTimeout(Exception):
    """Something did not come up; the message says where to look."""


EXIT_CODES: dict[type[Exception], int] = {
    BrokerUnreachable: UNREACHABLE,
    StartTimeout: UNREACHABLE,
    ChildMisconfigured: USAGE,
    OSError: USAGE,
}


async def _wait_until_ready(url: str, keys: LocalKeys, *, with_runner: bool) -> list[dict[str, Any]]:
    """The hosts that are up, once the edge takes work and, if one is ours, there is one; TimeoutError after READY_S."""
    headers = {"Authorization": f"Bearer {keys.admin}"}
    with anyio.fail_after(READY_TIMEOUT_S):
        async with httpx.AsyncClient(base_url=url, headers=headers, mounts=bypass_proxies_for_loopback(url)) as client:
            while True:
                hosts = await _fetch_online_hosts(client)
                if hosts is not None and (hosts or not with_runner):
                    return hosts
                await anyio.sleep(READY_POLL_INTERVAL_S)


async def _fetch_online_hosts(client: httpx.AsyncClient) -> list[dict[str, Any]] | None:
    """The hosts that are up; None while the edge takes no work."""
    try:
        if (await client.get("/readyz")).status_code != httpx.codes.OK:
            return None
        hosts = (await client.get("/v1/hosts")).json()["hosts"]
    except httpx.HTTPError:
        return None
    return [host for host in hosts if host["state"] == "online"]


def _announce(options: UpOptions, address: EdgeAddress, hosts: Iterable[dict[str, Any]]) -> None:
    for host in hosts:  # beside the line of JSON, which is for a program
        click.echo(f"lamplighter: {display.describe_engine(host)}", err=options.as_json)
    if options.easy_port:
        click.echo(
            f"lamplighter: http://127.0.0.1:{options.easy_port}/easy/ asks for no key: every program and user of this "
            "machine may submit jobs there; let no proxy or tunnel lead to it",
            err=True,
        )
    if options.as_json:
        said = {"url": address.url, "key": address.key, "data": str(options.data)}
        sys.stdout.write(msgspec.json.encode(said).decode() + "\n")
        sys.stdout.flush()
        return
    elsewhere = () if options.data == DEFAULT_DATA_DIR.resolve() else ("--data", str(options.data))
    first = format_command("submit", "echo", "--text", "hello", "--wait", *elsewhere)
    console = Console(highlight=False, soft_wrap=True)
    # Whoever keeps what goes elsewhere than to a terminal, journald say, keeps it for long and shows it to others.
    key = address.key if console.is_terminal else f"in {options.data / ADDRESS_FILE}"
    console.print(f"[bold green]Lamplighter is lit.[/]  url {address.url}\nkey {key}")
    console.print(f"Try: {first}   (logs: {options.data / 'logs'}; stop with Ctrl-C)", markup=False)


async def _serve(options: UpOptions, opened: PublicAccess) -> None:
    # Heard from the first moment to the last: no signal leaves a child behind, nor cuts a drain that has begun.
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await _run_until_signalled(options, opened, signals)


async def _run_until_signalled(
    options: UpOptions, opened: PublicAccess, signals: AsyncIterator[signal.Signals]
) -> None:
    ledger, logs = ChildRegistry(options.data), options.data / "logs"
    for folder in (logs, options.data / "edge", options.data / "broker"):  # what jobs of all owners are about
        make_private_folder(folder)
    for name in await ledger.stop_leftovers():
        log.warning("ended what an earlier, killed `up` left running", process=name)
    listening = listen_on_loopback(options.port)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    async with run_server(opened.server) as server, anyio.create_task_group() as tasks:
        tasks.start_soon(BrokerSupervisor(server, ledger, options.data).run)
        write_private_json(options.data / BROKER_FILE, _broker_settings(opened))
        async with open_edge(_broker_settings(opened)) as bus:
            keys = await ensure_keys(bus, options.data)
        edge = SupervisedProcess("edge", _edge_environ(options, opened, listening.fileno()), logs, ledger, listening)
        runner = SupervisedProcess("runner", _runner_environ(options, opened, url, keys), logs, ledger)
        tasks.start_soon(edge.run)
        if not options.no_runner:
            tasks.start_soon(runner.run)
        try:
            async with anyio.create_task_group() as coming:
                coming.start_soon(_announce_when_ready, options, EdgeAddress(url, keys.admin), keys, (edge, runner))
                await anext(signals)
                coming.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                edge.disable_restart()
                await runner.stop(options.grace_s + RUNNER_STOP_MARGIN_S)
                await edge.stop(EDGE_STOP_TIMEOUT_S)
        tasks.cancel_scope.cancel()
    ledger.clear()


async def _announce_when_ready(
    options: UpOptions, address: EdgeAddress, keys: LocalKeys, children: Iterable[SupervisedProcess]
) -> None:
    """Announce once all is ready."""
    try:
        hosts = await _wait_until_ready(address.url, keys, with_runner=not options.no_runner)
    except TimeoutError as error:
        raise StartTimeout(
            f"edge or runner did not come up within {READY_TIMEOUT_S:.0f} s: see {options.data / 'logs'}"
        ) from error
    for child in children:
        child.mark_ready()
    write_private_json(options.data / ADDRESS_FILE, address)
    _announce(options, address, hosts)


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 picks a free one.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DATA_DIR,
    show_default=True,
    help="Everything that is kept.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "docker", "process"]),
    default="auto",
    show_default=True,
    help="What runs jobs. auto decides at the first start, for good: Docker where this machine has it.",
)
@click.option(
    "--endpoints",
    multiple=True,
    type=click.Path(exists=True, path_type=Path, file_okay=False),
    help="Folder of an image (its endpoint.toml), or of several [this project's images]. May be repeated.",
)
@click.option("--slots", type=click.IntRange(1, 256), default=1, show_default=True, help="Jobs at once.")
@click.option("--grace", "grace_s", type=click.FloatRange(0), default=10.0, show_default=True, help="Seconds of drain.")
@click.option(
    "--easy-port",
    type=click.IntRange(1, 65535),
    help="Answer HeyGem's /easy/ calls without a key on this port of 127.0.0.1. Opens them to every program and user "
    "of this machine: they submit jobs, and read all jobs that came in this way.",
)
@click.option("--no-runner", is_flag=True, help="Run no jobs on this machine: hosts join.")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A lamplighter.toml for edge and runner: [hosts.NAME], say. What `up` sets itself wins.",
)
@public_options
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="warning", help="Of `up` itself."
)
@click.option("--log-format", type=click.Choice(["json", "text"]), default="text", help="Of `up` itself.")
@click.option("--json", "as_json", is_flag=True, help="Once ready, print one line: url, key, data.")
def up(log_level: str, log_format: str, endpoints: tuple[Path, ...], data: Path, **given: object) -> None:
    """Serve broker, edge and runner on this machine until stopped (Ctrl-C). On loopback only, unless --public."""
    os.umask(PRIVATE_UMASK)
    configure_logging(log_level, log_format)
    folders = endpoints or (IMAGES,)
    options = msgspec.convert(
        {**given, "data": data.resolve(), "endpoints": folders}, UpOptions, dec_hook=lambda _, v: v
    )
    with lock_or_exit(options.data):
        opened = PublicAccess(msgspec.convert(given, PublicOptions), options.data)
        with exit_on_error(EXIT_CODES):
            asyncio.run(_serve(options, opened))
