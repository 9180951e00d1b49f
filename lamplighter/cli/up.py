"""`lamplighter up`: serve broker, edge and runner on this machine, on loopback, until stopped."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import click
import httpx2
import msgspec
import structlog
from msgspec import Struct
from rich.console import Console

from bus.interface import BrokerUnreachable
from bus.open import open_edge
from bus.secret_files import PRIVATE_UMASK, make_private_folder
from bus.server.process import LOG_FILE as BROKER_LOG_FILE
from bus.server.process import run_server
from bus.settings import BrokerSettings
from edge.core.clock import utc_now
from edge.settings import EdgeSettings
from lamplighter.cli import display
from lamplighter.cli.context import ADDRESS_FILE, DEFAULT_DATA_DIR, UNREACHABLE, USAGE, EdgeAddress, format_command
from lamplighter.cli.language import say
from lamplighter.cli.log_output import configure_logging, rotate_forever
from lamplighter.cli.process_setup import (
    ServiceNotifier,
    SettingsFile,
    exit_on_error,
    read_settings_file,
    warn_of_old_names,
)
from lamplighter.cli.server_commands import CONFIG_VARIABLE, config_option
from lamplighter.cli.supervisor import (
    BROKER_FILE,
    BrokerSupervisor,
    ChildMisconfigured,
    ChildRegistry,
    LocalKeys,
    SupervisedProcess,
    ensure_keys,
    installation_id,
    listen_on_loopback,
    lock_or_exit,
    report_invalid_endpoints,
    write_private_json,
)
from lamplighter.cli.up_options import (
    PublicAccess,
    PublicOptions,
    check_public_options,
    config_variable,
    load_up_settings,
    public_options,
)
from runner.settings import IMAGES_DIR, RunnerSettings
from schemas.outbound_rules import DOCKER_PREFIXES, GPU_PREFIXES, build_child_environment, bypass_proxies_for_loopback
from schemas.settings_loader import SettingsInvalid, select_variables
from schemas.settings_schema import SETTING_PREFIX

READY_TIMEOUT_S = 60.0
HEYGEM_VARIABLE = "LAMPLIGHTER_HEYGEM__ENABLED"  # `up` turns it on unless it is set; `edge` does not
KEYLESS_PORT_VARIABLE = "LAMPLIGHTER_HEYGEM__KEYLESS_PORT"
READY_POLL_INTERVAL_S = 0.05
EDGE_STOP_TIMEOUT_S = 10.0
RUNNER_STOP_MARGIN_S = 15.0  # after `grace_s` the runner still stops the remaining jobs and releases them
BROKER_STOP_MARGIN_S = 15.0
LIVENESS_TIMEOUT_S = 10.0

log = structlog.get_logger()


class UpOptions(Struct, frozen=True, kw_only=True):
    """The options of `up`: each from the command line, else from the settings, else the default."""

    port: int
    data: Path
    engine: str
    endpoints: tuple[Path, ...]
    grace_s: float
    slots: int
    easy_port: int
    heygem: bool
    config: str
    no_runner: bool
    as_json: bool
    log_files: bool = True


class _Flags(Struct, frozen=True, kw_only=True):
    """The options of the command line that replace settings; None where one is not given."""

    port: int | None
    data: Path | None
    engine: str | None
    endpoints: tuple[Path, ...]
    grace_s: float | None
    slots: int | None
    easy_port: int | None
    no_runner: bool
    as_json: bool
    log_files: bool


def _resolve_options(flags: _Flags, file: SettingsFile) -> UpOptions:
    """Return each option from the command line, else from the settings, else its default. Raises SettingsInvalid."""
    settings = load_up_settings(file, os.environ)
    edge, runner = settings.edge, settings.runner
    if flags.easy_port and settings.is_given("heygem.enabled") and not edge.heygem.enabled:
        raise SettingsInvalid("--easy-port needs /easy/, but heygem.enabled is false: remove one of the two")
    data = flags.data or (edge.data if settings.is_given("data") else DEFAULT_DATA_DIR)
    folders = flags.endpoints or (runner.endpoints if settings.is_given("endpoints") else (IMAGES_DIR,))
    return UpOptions(
        port=edge.port if flags.port is None else flags.port,
        data=data.resolve(),
        engine=flags.engine or runner.engine,
        endpoints=folders,
        grace_s=runner.grace_s if flags.grace_s is None else flags.grace_s,
        slots=flags.slots or runner.slots,
        easy_port=flags.easy_port or edge.heygem.keyless_port,
        heygem=edge.heygem.enabled if settings.is_given("heygem.enabled") else True,
        config=config_variable(file),
        no_runner=flags.no_runner,
        as_json=flags.as_json,
        log_files=flags.log_files,
    )


def _edge_environ(options: UpOptions, opened: PublicAccess, fd: int) -> dict[str, str]:
    """Return the edge's environment: its settings, and all variables of other programs (drivers read credentials)."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(SETTING_PREFIX)},
        **select_variables(EdgeSettings, os.environ),
        **_shared_environ(options, opened, "edge"),
        **opened.edge_environ(),
        "LAMPLIGHTER_FD": str(fd),
        "LAMPLIGHTER_DATA": str(options.data / "edge"),
        "LAMPLIGHTER_BROKER__MONITOR": opened.server.monitor_url,
        HEYGEM_VARIABLE: str(int(options.heygem)),
        KEYLESS_PORT_VARIABLE: str(options.easy_port),
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
        CONFIG_VARIABLE: options.config,
        "LAMPLIGHTER_BROKER__URL": opened.server.url,
        "LAMPLIGHTER_BROKER__USER": user,
        "LAMPLIGHTER_BROKER__PASSWORD": opened.server.passwords[user],
        "LAMPLIGHTER_ENDPOINTS": msgspec.json.encode(folders).decode(),
    }


def _broker_settings(opened: PublicAccess) -> BrokerSettings:
    server, password = opened.server, opened.server.passwords["edge"]
    return BrokerSettings(url=server.url, user="edge", password=password, monitor=server.monitor_url, pin=opened.pin)


class StartTimeout(Exception):
    """Edge or runner did not start in time. The message says where to look."""


EXIT_CODES: dict[type[Exception], int] = {
    BrokerUnreachable: UNREACHABLE,
    StartTimeout: UNREACHABLE,
    ChildMisconfigured: USAGE,
    SettingsInvalid: USAGE,
    OSError: USAGE,
}


async def _wait_until_ready(address: EdgeAddress, *, with_runner: bool) -> list[dict[str, Any]]:
    """Return the online hosts once the edge is ready and, if we start a runner, it is online. Raises TimeoutError.

    The heartbeat of an earlier runner may still be stored, so only a host that came online after the call counts.
    """
    called_at = utc_now()
    headers = {"Authorization": f"Bearer {address.key}"}
    with anyio.fail_after(READY_TIMEOUT_S):
        async with httpx2.AsyncClient(
            base_url=address.url, headers=headers, mounts=bypass_proxies_for_loopback(address.url)
        ) as client:
            while True:
                hosts = await _fetch_online_hosts(client)
                if hosts is not None and (not with_runner or any(_is_online_since(host, called_at) for host in hosts)):
                    return hosts
                await anyio.sleep(READY_POLL_INTERVAL_S)


def _is_online_since(host: dict[str, Any], moment: datetime) -> bool:
    return datetime.fromisoformat(host["since"]) >= moment


async def _fetch_online_hosts(client: httpx2.AsyncClient) -> list[dict[str, Any]] | None:
    """Return the online hosts, or None while the edge is not ready."""
    try:
        if (await client.get("/readyz")).status_code != httpx2.codes.OK:
            return None
        hosts = (await client.get("/v1/hosts")).json()["hosts"]
    except httpx2.HTTPError:
        return None
    return [host for host in hosts if host["state"] == "online"]


async def _fetch_console_path(address: EdgeAddress) -> str | None:
    """Return the path of a link that signs a browser in; None if the console is switched off.

    It is the path of the sign-in page if the edge gives no ticket.
    """
    headers = {"Authorization": f"Bearer {address.key}"}
    try:
        async with httpx2.AsyncClient(
            base_url=address.url, headers=headers, mounts=bypass_proxies_for_loopback(address.url)
        ) as client:
            reply = await client.post("/v1/session/tickets")
            if reply.status_code == httpx2.codes.NOT_IMPLEMENTED:
                return None
            path: str = reply.raise_for_status().json()["path"]
            return path
    except httpx2.HTTPError:
        return "/"


def _announce(
    options: UpOptions,
    address: EdgeAddress,
    hosts: Sequence[dict[str, Any]],
    opened: PublicAccess | None = None,
    console_path: str | None = "/",
) -> None:
    for host in hosts:  # on stderr with --json, because stdout is for a program then
        click.echo(f"lamplighter: {say(display.describe_engine(host))}", err=options.as_json)
    if options.easy_port:
        warning = (
            f"http://127.0.0.1:{options.easy_port}/easy/ needs no key: every program and user of this "
            "machine may submit jobs there; do not expose it through a proxy or tunnel"
        )
        click.echo(f"lamplighter: {say(warning)}", err=True)
    if options.as_json:
        answer = {"url": address.url, "key": address.key, "data": str(options.data)}
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
        sys.stdout.flush()
        return
    console = Console(highlight=False, soft_wrap=True)
    # Only a terminal shows the key: other output, such as the journal, is stored and others may read it.
    key = address.key if console.is_terminal else say(f"in {options.data / ADDRESS_FILE}")
    console.print(f"[bold green]{say('Lamplighter is running.')}[/]  url {address.url}\n{say('key')} {key}")
    logs = f"logs: {options.data / 'logs'}; " if options.log_files else ""
    if console.is_terminal and console_path is not None:  # the link signs a browser in
        console.print(say(f"console {address.url}{console_path}"), markup=False)
    if opened is not None and opened.url is not None:
        pin = say(f"(clients elsewhere: --url {opened.url} --pin {opened.public_pin})") if opened.public_pin else ""
        console.print(f"public {opened.url}  {pin}".rstrip(), markup=False)
    example = _next_command(options, hosts, is_public=opened is not None and opened.url is not None)
    console.print(say(f"Try: {example}   ({logs}stop with Ctrl-C)"), markup=False)
    app = format_command("keys", "create", "app", *_data_option(options))
    console.print(say(f"The key above is for administration. For a program: {app}"), markup=False)


def _data_option(options: UpOptions) -> tuple[str, ...]:
    return () if options.data == DEFAULT_DATA_DIR.resolve() else ("--data", str(options.data))


def _next_command(options: UpOptions, hosts: Sequence[dict[str, Any]], *, is_public: bool) -> str:
    """Return a command to try next: submit a job, show an endpoint, or add a host."""
    offered = sorted(name for host in hosts for name in host["endpoints"])
    if "echo" in offered:
        return format_command("submit", "echo", "--text", "hello", "--wait", *_data_option(options))
    if offered:
        return format_command("endpoints", offered[0], *_data_option(options))
    words = ("hosts", "add", "gpu-1") if is_public else ("doctor",)
    return format_command(*words, *_data_option(options))


async def _is_edge_alive(url: str) -> bool:
    """Return whether the edge answers: an edge that hangs must not count as a service that runs."""
    try:
        async with httpx2.AsyncClient(mounts=bypass_proxies_for_loopback(url)) as client:
            return (await client.get(f"{url}/livez", timeout=LIVENESS_TIMEOUT_S)).status_code == httpx2.codes.OK
    except httpx2.HTTPError:
        return False


async def _serve(options: UpOptions, opened: PublicAccess, notifier: ServiceNotifier) -> None:
    # Signals are received from start to end, so that none leaves a child running or interrupts a drain.
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await _run_until_signalled(options, opened, signals, notifier)


async def _run_until_signalled(
    options: UpOptions, opened: PublicAccess, signals: AsyncIterator[signal.Signals], notifier: ServiceNotifier
) -> None:
    registry, logs = ChildRegistry(options.data), options.data / "logs" if options.log_files else None
    for folder in (logs, options.data / "edge", options.data / "broker"):  # they hold data of all owners' jobs
        if folder is not None:
            make_private_folder(folder)
    for name in await registry.stop_leftovers():
        log.warning("leftover_process_stopped", process=name)
    listening = listen_on_loopback(options.port)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    async with (
        run_server(opened.server) as server,
        notifier.pinging(partial(_is_edge_alive, url)),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(BrokerSupervisor(server, registry, options.data).run)
        if logs is not None:
            files = [*(logs / f"{name}.log" for name in ("edge", "runner")), options.data / "broker" / BROKER_LOG_FILE]
            tasks.start_soon(rotate_forever, files)
        write_private_json(options.data / BROKER_FILE, _broker_settings(opened))
        async with open_edge(_broker_settings(opened)) as bus:
            keys = await ensure_keys(bus, options.data)
        edge = SupervisedProcess("edge", _edge_environ(options, opened, listening.fileno()), logs, registry, listening)
        runner = SupervisedProcess("runner", _runner_environ(options, opened, url, keys), logs, registry)
        tasks.start_soon(edge.run)
        tasks.start_soon(opened.watch_certificate)
        if not options.no_runner:
            await tasks.start(report_invalid_endpoints, options.endpoints)
            tasks.start_soon(runner.run)
        try:
            async with anyio.create_task_group() as starting:
                address = EdgeAddress(url, keys.admin)
                starting.start_soon(_announce_when_ready, options, opened, address, (edge, runner), notifier)
                await anext(signals)
                starting.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                edge.disable_restart()
                notifier.stopping(options.grace_s + RUNNER_STOP_MARGIN_S + EDGE_STOP_TIMEOUT_S + BROKER_STOP_MARGIN_S)
                await runner.stop(options.grace_s + RUNNER_STOP_MARGIN_S)
                await edge.stop(EDGE_STOP_TIMEOUT_S)
        tasks.cancel_scope.cancel()
    registry.clear()


async def _announce_when_ready(
    options: UpOptions,
    opened: PublicAccess,
    address: EdgeAddress,
    children: Iterable[SupervisedProcess],
    notifier: ServiceNotifier,
) -> None:
    """Report that all processes are ready, and print the address and the key."""
    try:
        hosts = await _wait_until_ready(address, with_runner=not options.no_runner)
    except TimeoutError as error:
        logs = f"the logs in {options.data / 'logs'}" if options.log_files else "the lines above"
        raise StartTimeout(f"edge or runner did not start within {READY_TIMEOUT_S:.0f} s: read {logs}") from error
    for child in children:
        child.mark_ready()
    write_private_json(options.data / ADDRESS_FILE, address)
    notifier.ready()
    _announce(options, address, hosts, opened, await _fetch_console_path(address))


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), help="0 picks a free one [8000].")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Folder for everything that is stored [{DEFAULT_DATA_DIR}].",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "docker", "process"]),
    help="What runs jobs [auto]. auto decides once, at the first start: Docker if this machine has it.",
)
@click.option(
    "--endpoints",
    multiple=True,
    type=click.Path(exists=True, path_type=Path, file_okay=False),
    help="Folder of an image (its endpoint.toml), or of several [this project's images]. May be repeated.",
)
@click.option("--slots", type=click.IntRange(1, 256), help="Jobs that run at the same time [1].")
@click.option("--grace", "grace_s", type=click.FloatRange(0), help="Seconds for running jobs to end [10].")
@click.option(
    "--easy-port",
    type=click.IntRange(1, 65535),
    help="Answer HeyGem's /easy/ calls without a key on this port of 127.0.0.1. Opens them to every program and user "
    "of this machine: they can submit jobs, and read all jobs that were submitted this way.",
)
@click.option("--no-runner", is_flag=True, help="Run no jobs on this machine; other hosts join.")
@config_option
@public_options
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    help="Lowest level to log.",
)
@click.option("--log-format", type=click.Choice(["json", "text"]), default="text", help="Format of the log of `up`.")
@click.option(
    "--log-files/--no-log-files",
    default=True,
    help="Write the logs of broker, edge and runner to files in --data, or all to stderr, for journald or Docker.",
)
@click.option("--json", "as_json", is_flag=True, help="When ready, print one line of JSON: url, key, data.")
def up(log_level: str, log_format: str, config: Path, **given: object) -> None:
    """Serve broker, edge and runner on this machine until Ctrl-C. Listens only on loopback, unless --public is given.

    Options override the settings file.
    """
    os.umask(PRIVATE_UMASK)
    notifier = ServiceNotifier.from_environment(os.environ)
    check_public_options(given)
    configure_logging(log_level, log_format)
    with exit_on_error(EXIT_CODES):
        file = read_settings_file(config)
        options = _resolve_options(msgspec.convert(given, _Flags, dec_hook=lambda _, value: value), file)
    warn_of_old_names(file, (EdgeSettings, RunnerSettings), os.environ)
    with lock_or_exit(options.data):
        public = msgspec.convert(given, PublicOptions, dec_hook=lambda _, v: v)
        opened = PublicAccess(public, options.data, log_to_stderr=not options.log_files)
        with exit_on_error(EXIT_CODES):
            asyncio.run(_serve(options, opened, notifier))
