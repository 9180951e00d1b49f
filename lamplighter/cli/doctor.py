"""What `doctor` looks at. Each check is one function that answers Findings; none changes anything."""

import asyncio
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import anyio
import click
import httpx
from msgspec import Struct, field
from rich.text import Text

from lamplighter.cli import display
from lamplighter.cli.context import FAILED, UNREACHABLE, CliContext, EdgeAddress, client_command
from lamplighter.transport import auth_headers, map_http_errors
from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.port import EngineError
from runner.gpu.monitor import NvmlMonitor, nvml_spawner
from schemas.environment import bypass_proxies_for_loopback
from schemas.gpu import GpuMonitorState

MIN_FREE_BYTES = 5 * 1000**3  # below this a video job may not find room for its frames
CLOCK_SKEW_LIMIT_S = 30.0
EDGE_CHECK = "edge"  # without it there is nothing to ask it
ENGINE_AWAY_FIX = "start Docker on that host; its runner goes on by itself"
UNSCHEDULABLE_FIXES = {
    "image_missing": "build or pull its image on that host, under the name that its endpoint.toml gives",
    "disk_short": "free some space on that host",
}
PROCESS_ENGINE_FIX = "install Docker on that host and set engine = docker, or run only images that you trust"
TOOLKIT_FIX = "install the NVIDIA container toolkit on that host and restart its runner"


class CheckStatus(StrEnum):
    """How a check went."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(Struct, frozen=True):
    """One thing checked; `mend` says what to do where it is not well."""

    name: str
    verdict: CheckStatus
    what: str
    fix: str = field(default="", name="mend")


class DoctorTarget(Struct, frozen=True):
    """What is looked at: an edge as a client sees it, and this machine."""

    address: EdgeAddress
    data: Path
    http: httpx.Client

    def get(self, path: str) -> httpx.Response:
        """Ask the edge; httpx errors are the caller's."""
        return self.http.get(path)


def check_edge(patient: DoctorTarget) -> Iterable[Finding]:
    """The edge and the way to it, and that its clock is ours."""
    reply = patient.get("/livez")
    if reply.status_code != httpx.codes.OK or reply.headers.get("content-type") != "application/json":
        what = f"what answers at {patient.address.url} is none (HTTP {reply.status_code})"
        yield Finding(EDGE_CHECK, CheckStatus.FAIL, what, "name the right address with --url")
        return
    yield Finding(EDGE_CHECK, CheckStatus.OK, f"answers at {patient.address.url}")
    skew = abs((datetime.now(UTC) - parsedate_to_datetime(reply.headers["date"])).total_seconds())
    verdict = CheckStatus.OK if skew < CLOCK_SKEW_LIMIT_S else CheckStatus.WARN
    mend = "" if verdict is CheckStatus.OK else "set both clocks by NTP"
    yield Finding("clock", verdict, f"{skew:.0f} s apart from the edge's", mend)


def check_readiness(patient: DoctorTarget) -> Iterable[Finding]:
    """Broker reachable, writing and synced, index caught up, store not full: all that readyz asks."""
    reply = patient.get("/readyz")
    if reply.status_code == httpx.codes.OK:
        yield Finding("broker", CheckStatus.OK, "reachable, synced, and its store has room")
    said = reply.json()
    for key, verdict in (("why", CheckStatus.FAIL), ("degraded", CheckStatus.WARN)):
        for line in said.get(key, ()):
            what, _, mend = line.partition(": ")
            yield Finding("broker", verdict, what, mend or "see the edge's and the broker's log")


def check_key(patient: DoctorTarget) -> Iterable[Finding]:
    """The key opens the jobs."""
    reply = patient.get("/v1/jobs?limit=1")
    if reply.status_code == httpx.codes.OK:
        yield Finding("key", CheckStatus.OK, "valid")
    else:
        mend = "give --key or LAMPLIGHTER_KEY, or make one with: lamplighter keys create OWNER"
        yield Finding("key", CheckStatus.FAIL, f"refused with {reply.status_code}", mend)


def check_hosts(patient: DoctorTarget) -> Iterable[Finding]:
    """Every host, its cards, and what it says it cannot start now."""
    reply = patient.get("/v1/hosts")
    if reply.status_code != httpx.codes.OK:
        yield Finding("hosts", CheckStatus.WARN, "this key may not see them", "give a key with the scope hosts:read")
        return
    hosts: list[dict[str, Any]] = reply.json()["hosts"]
    if not hosts:
        yield Finding("hosts", CheckStatus.WARN, "none has come to this edge yet", "start one with: lamplighter runner")
    for host in hosts:
        well = CheckStatus.OK if host["state"] == "online" else CheckStatus.WARN
        offered = ", ".join(host["endpoints"]) or "nothing"
        yield Finding(f"host {host['id']}", well, f"{host['state']}, offers {offered}")
        for gpu in host["gpus"]:
            fit = CheckStatus.OK if gpu["fitness"] == "fit" else CheckStatus.WARN
            yield Finding(f"gpu {gpu['uuid']}", fit, f"{gpu['name']}: {gpu['fitness']}", gpu.get("reason") or "")
        yield from _check_engine(host)
        yield from _check_blocked_tasks(host)
        yield from _check_endpoints(host)
        yield from _check_gpu_injection(host)


def _check_engine(host: dict[str, Any]) -> Iterable[Finding]:
    """What runs jobs there: whether it answers, and whether it keeps jobs apart from the machine."""
    name, engine = f"engine of {host['id']}", host.get("engine")
    if why := host.get("engine_away"):
        yield Finding(name, CheckStatus.FAIL, f"{engine} does not answer, its jobs wait: {why}", ENGINE_AWAY_FIX)
    elif engine == "process":
        who = host.get("run_as") or "the runner's user"
        yield Finding(
            name, CheckStatus.WARN, f"jobs run as plain processes of {who}, not in containers", PROCESS_ENGINE_FIX
        )
    elif engine:
        yield Finding(name, CheckStatus.OK, f"jobs run by {engine}")


def _check_blocked_tasks(host: dict[str, Any]) -> Iterable[Finding]:
    """What its runner has to do and cannot now."""
    for what in host.get("waits", ()):
        why, _, mend = what.partition("): ")  # our own errors say behind their cause what to do
        shown = f"{why})" if mend else why
        yield Finding(f"runner of {host['id']}", CheckStatus.WARN, f"cannot {shown}", mend or "see that runner's log")


def _check_endpoints(host: dict[str, Any]) -> Iterable[Finding]:
    """The endpoints that cannot start there now."""
    for endpoint, why in host.get("unschedulable", {}).items():
        if why == "engine_away":  # told once, of the host
            continue
        yield Finding(
            f"{endpoint} on {host['id']}",
            CheckStatus.WARN,
            f"cannot start now: {why}",
            UNSCHEDULABLE_FIXES.get(why, ""),
        )


def _check_gpu_injection(host: dict[str, Any]) -> Iterable[Finding]:
    """How the host's engine gives cards to containers, and the containers that wait there for their jobs."""
    if way := host.get("injection"):
        well, mend = (CheckStatus.FAIL, TOOLKIT_FIX) if way == "none" else (CheckStatus.OK, "")
        yield Finding(f"cards of {host['id']}", well, f"given to containers by {way}", mend)
    for slots in host.get("warm", ()):
        well = CheckStatus.WARN if slots.get("why") else CheckStatus.OK
        mend = "mend the image, or set warm = false in its endpoint.toml" if slots.get("why") else ""
        yield Finding(f"warm slots of {host['id']}", well, display.format_warm_slots(slots), mend)


def check_disk(patient: DoctorTarget) -> Iterable[Finding]:
    """The disk under the data folder."""
    folder = next(place for place in (patient.data, *patient.data.resolve().parents) if place.exists())
    free = shutil.disk_usage(folder).free
    verdict = CheckStatus.OK if free > MIN_FREE_BYTES else CheckStatus.WARN
    mend = "" if verdict is CheckStatus.OK else "free some space, or move the data folder with --data"
    yield Finding("disk", verdict, f"{free / 1000**3:.0f} GB free under {folder}", mend)


Check = Callable[[DoctorTarget], Iterable[Finding]]
EDGE_CHECKS: Mapping[str, Check] = {"broker": check_readiness, "key": check_key, "hosts": check_hosts}
LOCAL_CHECKS: tuple[Check, ...] = (check_disk,)


# MERGED lamplighter/cli/machine.py: What `doctor` finds on this machine: the container engine and the cards, through
# the runner's own adapters.


ENGINE_PROBE_TIMEOUT_S = 20.0


async def check_local_engine() -> list[Finding]:
    """Whether a Docker engine answers, and how it gives cards to containers."""
    mend = "install or start Docker, or run jobs unisolated with --engine process"
    settings = DockerSettings(base_url=os.environ.get("DOCKER_HOST", DockerSettings().base_url))
    try:
        with anyio.fail_after(ENGINE_PROBE_TIMEOUT_S):
            async with DockerEngine(settings) as engine:
                info = await engine.probe()
    except (EngineError, TimeoutError) as error:
        return [Finding("engine", CheckStatus.WARN, f"no Docker engine: {error}", mend)]
    return [Finding("engine", CheckStatus.OK, f"{info.name} {info.version}", "; ".join(info.notes))]


async def check_local_gpus() -> list[Finding]:
    """What NVML says of the cards of this machine."""
    async with NvmlMonitor(nvml_spawner(), clock=time.time, random=random.random) as watch:
        seen = watch.snapshot()
    if seen.state is not GpuMonitorState.OK:
        return [
            Finding(
                "nvml",
                CheckStatus.WARN,
                f"{seen.state}: {seen.why or 'no card is watched'}",
                "GPU endpoints cannot run here",
            )
        ]
    cards = [
        Finding("nvml", CheckStatus.OK, f"driver {seen.driver}, {display.format_count(len(seen.samples), 'card')}")
    ]
    return cards + [
        Finding(f"card {one.uuid}", CheckStatus.OK, f"{one.name}, {one.memory_free_mb} MB free") for one in seen.samples
    ]


# MERGED lamplighter/cli/doctor.py: `lamplighter doctor`: what is well, what is not, and how to mend it.


STATUS_STYLES = {CheckStatus.OK: "green", CheckStatus.WARN: "yellow", CheckStatus.FAIL: "red"}
EDGE_TIMEOUT_S = 5.0


def _run_checks(patient: DoctorTarget) -> Iterator[Finding]:
    try:
        found = list(check_edge(patient))
    except httpx.HTTPError as error:
        mend = "start it with: lamplighter up, or name another with --url"
        found = [Finding(EDGE_CHECK, CheckStatus.FAIL, f"no answer from {patient.address.url}: {error}", mend)]
    yield from found
    if all(finding.verdict is not CheckStatus.FAIL for finding in found):
        for name, check in EDGE_CHECKS.items():
            yield from _run_edge_check(name, check, patient)
    for check in LOCAL_CHECKS:
        yield from check(patient)
    yield from asyncio.run(check_local_engine())
    yield from asyncio.run(check_local_gpus())


def _run_edge_check(name: str, check: Check, patient: DoctorTarget) -> Iterator[Finding]:
    """What `check` finds; one that the edge does not answer in time keeps no other from being made."""
    try:
        yield from check(patient)
    except httpx.HTTPError as error:
        yield Finding(name, CheckStatus.FAIL, f"the edge did not answer in time ({error})", "see what failed before it")


@click.command()
@client_command
def doctor(session: CliContext) -> None:
    """Check the edge, the way to it, and this machine. Exit 0 when nothing failed, 3 without an edge, else 1."""
    headers = auth_headers(session.address.key)
    with map_http_errors(session.address.url):
        url = session.address.url
        http = httpx.Client(
            base_url=url, headers=headers, timeout=EDGE_TIMEOUT_S, mounts=bypass_proxies_for_loopback(url)
        )
    with http:
        findings = list(_run_checks(DoctorTarget(session.address, session.data, http)))
    rows = [(f.name, Text(f.verdict, STATUS_STYLES[f.verdict]), f.what, f.fix) for f in findings]
    session.show(
        findings, lambda: display.print_table(session.out, ("CHECK", "", "FOUND", "MEND"), rows, "nothing checked")
    )
    failed = {finding.name for finding in findings if finding.verdict is CheckStatus.FAIL}
    if failed:
        sys.exit(UNREACHABLE if EDGE_CHECK in failed else FAILED)
