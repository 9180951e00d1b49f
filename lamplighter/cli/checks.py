"""What `doctor` looks at. Each check is one function that answers Findings; none changes anything."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx
from msgspec import Struct

from lamplighter.cli import show
from lamplighter.cli.session import Address

FREE_BYTES = 5 * 1000**3  # below this a video job may not find room for its frames
SKEW_S = 30.0
EDGE = "edge"  # without it there is nothing to ask it
ENGINE_AWAY = "start Docker on that host; its runner goes on by itself"
HINDRANCES = {
    "image_missing": "build or pull its image on that host, under the name that its endpoint.toml gives",
    "disk_short": "free some space on that host",
}
PROCESSES = "install Docker on that host and set engine = docker, or run only images that you trust"
TOOLKIT = "install the NVIDIA container toolkit on that host and restart its runner"


class Verdict(StrEnum):
    """How a check went."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(Struct, frozen=True):
    """One thing checked; `mend` says what to do where it is not well."""

    name: str
    verdict: Verdict
    what: str
    mend: str = ""


class Patient(Struct, frozen=True):
    """What is looked at: an edge as a client sees it, and this machine."""

    address: Address
    data: Path
    http: httpx.Client

    def get(self, path: str) -> httpx.Response:
        """Ask the edge; httpx errors are the caller's."""
        return self.http.get(path)


def edge_answers(patient: Patient) -> Iterable[Finding]:
    """The edge and the way to it, and that its clock is ours."""
    reply = patient.get("/livez")
    if reply.status_code != httpx.codes.OK or reply.headers.get("content-type") != "application/json":
        what = f"what answers at {patient.address.url} is none (HTTP {reply.status_code})"
        yield Finding(EDGE, Verdict.FAIL, what, "name the right address with --url")
        return
    yield Finding(EDGE, Verdict.OK, f"answers at {patient.address.url}")
    skew = abs((datetime.now(UTC) - parsedate_to_datetime(reply.headers["date"])).total_seconds())
    verdict = Verdict.OK if skew < SKEW_S else Verdict.WARN
    mend = "" if verdict is Verdict.OK else "set both clocks by NTP"
    yield Finding("clock", verdict, f"{skew:.0f} s apart from the edge's", mend)


def edge_takes_work(patient: Patient) -> Iterable[Finding]:
    """Broker reachable, writing and synced, index caught up, store not full: all that readyz asks."""
    reply = patient.get("/readyz")
    if reply.status_code == httpx.codes.OK:
        yield Finding("broker", Verdict.OK, "reachable, synced, and its store has room")
    said = reply.json()
    for key, verdict in (("why", Verdict.FAIL), ("ailing", Verdict.WARN)):
        for line in said.get(key, ()):
            what, _, mend = line.partition(": ")
            yield Finding("broker", verdict, what, mend or "see the edge's and the broker's log")


def key_is_valid(patient: Patient) -> Iterable[Finding]:
    """The key opens the jobs."""
    reply = patient.get("/v1/jobs?limit=1")
    if reply.status_code == httpx.codes.OK:
        yield Finding("key", Verdict.OK, "valid")
    else:
        mend = "give --key or LAMPLIGHTER_KEY, or make one with: lamplighter keys create OWNER"
        yield Finding("key", Verdict.FAIL, f"refused with {reply.status_code}", mend)


def hosts_are_there(patient: Patient) -> Iterable[Finding]:
    """Every host, its cards, and what it says it cannot start now."""
    reply = patient.get("/v1/hosts")
    if reply.status_code != httpx.codes.OK:
        yield Finding("hosts", Verdict.WARN, "this key may not see them", "give a key with the scope hosts:read")
        return
    hosts: list[dict[str, Any]] = reply.json()["hosts"]
    if not hosts:
        yield Finding("hosts", Verdict.WARN, "none has come to this edge yet", "start one with: lamplighter runner")
    for host in hosts:
        well = Verdict.OK if host["state"] == "online" else Verdict.WARN
        offered = ", ".join(host["endpoints"]) or "nothing"
        yield Finding(f"host {host['id']}", well, f"{host['state']}, offers {offered}")
        for gpu in host["gpus"]:
            fit = Verdict.OK if gpu["fitness"] == "fit" else Verdict.WARN
            yield Finding(f"gpu {gpu['uuid']}", fit, f"{gpu['name']}: {gpu['fitness']}", gpu.get("reason") or "")
        yield from _engine(host)
        yield from _waiting(host)
        yield from _hindered(host)
        yield from _containers(host)


def _engine(host: dict[str, Any]) -> Iterable[Finding]:
    """What runs jobs there: whether it answers, and whether it keeps jobs apart from the machine."""
    name, engine = f"engine of {host['id']}", host.get("engine")
    if why := host.get("engine_away"):
        yield Finding(name, Verdict.FAIL, f"{engine} does not answer, its jobs wait: {why}", ENGINE_AWAY)
    elif engine == "process":
        who = host.get("run_as") or "the runner's user"
        yield Finding(name, Verdict.WARN, f"jobs run as plain processes of {who}, not in containers", PROCESSES)
    elif engine:
        yield Finding(name, Verdict.OK, f"jobs run by {engine}")


def _waiting(host: dict[str, Any]) -> Iterable[Finding]:
    """What its runner has to do and cannot now."""
    for what in host.get("waits", ()):
        why, _, mend = what.partition("): ")  # our own errors say behind their cause what to do
        shown = f"{why})" if mend else why
        yield Finding(f"runner of {host['id']}", Verdict.WARN, f"cannot {shown}", mend or "see that runner's log")


def _hindered(host: dict[str, Any]) -> Iterable[Finding]:
    """The endpoints that cannot start there now."""
    for endpoint, why in host.get("cannot", {}).items():
        if why == "engine_away":  # told once, of the host
            continue
        yield Finding(f"{endpoint} on {host['id']}", Verdict.WARN, f"cannot start now: {why}", HINDRANCES.get(why, ""))


def _containers(host: dict[str, Any]) -> Iterable[Finding]:
    """How the host's engine gives cards to containers, and the containers that wait there for their jobs."""
    if way := host.get("injection"):
        well, mend = (Verdict.FAIL, TOOLKIT) if way == "none" else (Verdict.OK, "")
        yield Finding(f"cards of {host['id']}", well, f"given to containers by {way}", mend)
    for slots in host.get("warm", ()):
        well = Verdict.WARN if slots.get("why") else Verdict.OK
        mend = "mend the image, or set warm = false in its endpoint.toml" if slots.get("why") else ""
        yield Finding(f"warm slots of {host['id']}", well, show.warm(slots), mend)


def disk_has_room(patient: Patient) -> Iterable[Finding]:
    """The disk under the data folder."""
    folder = next(place for place in (patient.data, *patient.data.resolve().parents) if place.exists())
    free = shutil.disk_usage(folder).free
    verdict = Verdict.OK if free > FREE_BYTES else Verdict.WARN
    mend = "" if verdict is Verdict.OK else "free some space, or move the data folder with --data"
    yield Finding("disk", verdict, f"{free / 1000**3:.0f} GB free under {folder}", mend)


Check = Callable[[Patient], Iterable[Finding]]
REMOTE: Mapping[str, Check] = {"broker": edge_takes_work, "key": key_is_valid, "hosts": hosts_are_there}
LOCAL: tuple[Check, ...] = (disk_has_room,)
