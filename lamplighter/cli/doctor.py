"""`lamplighter doctor`: check the edge, the hosts and this machine, and show how to fix what fails.

A check is a function that returns Findings and changes nothing. Checks of the edge see what a client sees; checks of
this machine use the runner's own adapters, where `lamplighter-server` is installed.
"""

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import click
import httpx2
import msgspec
from msgspec import Struct
from rich.text import Text

from lamplighter.cli import display, server_parts
from lamplighter.cli.context import FAILED, UNREACHABLE, CliContext, EdgeAddress, client_command
from lamplighter.cli.hosts import version_warning
from lamplighter.cli.language import say
from lamplighter.transport import (
    auth_headers,
    fetch_certificate,
    find_verification_error,
    language_headers,
    make_ssl_context,
    map_http_errors,
    unreachable,
)
from schemas.certificates import first_certificate, read_certificate
from schemas.host import ENDPOINTS_TASK
from schemas.outbound_rules import bypass_proxies_for_loopback
from schemas.version import VERSION

MIN_FREE_BYTES = 5 * 1000**3  # a video job may need more for its frames
CLOCK_SKEW_LIMIT_S = 30.0
EDGE_CHECK = "edge"  # the other checks of the edge run only if this one does not fail
EDGE_TIMEOUT_S = 5.0
EXPIRY_WARNING_DAYS = 14  # programs that renew do so 30 days before the end
SERVED_CERTIFICATE = Path("tls") / "served.pem"  # in the data folder of `up`
ENGINE_AWAY_FIX = "start Docker on that host; its runner continues without a restart"
TROUBLED_STATES = frozenset({"blocked", "fault"})
UNSCHEDULABLE_FIXES = {
    "volume_missing": "see the volumes of that host in this list",
    "image_missing": "build or pull its image on that host, under the name in its endpoint.toml",
    "disk_short": "free some space on that host",
}
ENDPOINTS_FIX = "correct that file; until then the host keeps its endpoints as they were"
UNMET_FIX = "offer it on another host, or correct the requirements in its endpoint.toml"
REPORTED_ONCE = frozenset({"engine_away", "requirement_unmet"})  # other checks report these for the host
PROCESS_ENGINE_FIX = "install Docker on that host and set engine = docker, or run only images that you trust"
SECRETS_FIX = "name a folder of a tmpfs as secrets_folder in the settings of that runner"
TOOLKIT_FIX = "install the NVIDIA container toolkit on that host and restart its runner"


class CheckStatus(StrEnum):
    """The result of a check. `fail` makes the command exit with an error."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(Struct, frozen=True):
    """One result of a check. `fix` says what to do if it is not ok."""

    name: str
    verdict: CheckStatus
    what: str
    fix: str = ""


class DoctorTarget(Struct, frozen=True):
    """The objects to check: an edge as a client sees it, and this machine."""

    address: EdgeAddress
    data: Path
    http: httpx2.Client

    def get(self, path: str) -> httpx2.Response:
        """Send a GET request to the edge. Raises httpx2 errors."""
        return self.http.get(path)


def check_edge(target: DoctorTarget) -> Iterable[Finding]:
    """Check that the edge answers, and that its clock agrees with ours."""
    reply = target.get("/livez")
    if reply.status_code != httpx2.codes.OK or reply.headers.get("content-type") != "application/json":
        what = f"{target.address.url} is not a Lamplighter edge (HTTP {reply.status_code})"
        yield Finding(EDGE_CHECK, CheckStatus.FAIL, what, "give the right address with --url")
        return
    yield Finding(EDGE_CHECK, CheckStatus.OK, f"answers at {target.address.url}")
    skew = abs((datetime.now(UTC) - parsedate_to_datetime(reply.headers["date"])).total_seconds())
    verdict = CheckStatus.OK if skew < CLOCK_SKEW_LIMIT_S else CheckStatus.WARN
    fix = "" if verdict is CheckStatus.OK else "synchronize both clocks with NTP"
    yield Finding("clock", verdict, f"differs by {skew:.0f} s from the edge's", fix)


def check_readiness(target: DoctorTarget) -> Iterable[Finding]:
    """Check the readiness of the edge: broker reachable, writing and synced, index caught up, store not full."""
    reply = target.get("/readyz")
    if reply.status_code == httpx2.codes.OK:
        yield Finding("broker", CheckStatus.OK, "reachable, synced, and its store has room")
    answer = reply.json()
    if version := answer.get("version"):
        yield Finding("version", CheckStatus.OK, f"edge {version}, this command {VERSION}")
    degraded = answer.get("degraded", answer.get("ailing", ()))  # an edge of the release before has only `ailing`
    for verdict, lines in ((CheckStatus.FAIL, answer.get("why", ())), (CheckStatus.WARN, degraded)):
        for line in lines:
            what, _, fix = line.partition(": ")
            yield Finding("broker", verdict, what, fix or "read the logs of the edge and the broker")


def check_key(target: DoctorTarget) -> Iterable[Finding]:
    """Check that the key may list jobs."""
    reply = target.get("/v1/jobs?limit=1")
    if reply.status_code == httpx2.codes.OK:
        yield Finding("key", CheckStatus.OK, "valid")
    else:
        fix = "give --key or LAMPLIGHTER_KEY, or create a key with: lamplighter keys create OWNER"
        yield Finding("key", CheckStatus.FAIL, f"refused with {reply.status_code}", fix)


def check_hosts(target: DoctorTarget) -> Iterable[Finding]:
    """Check each host: its state, its GPUs, its engine, and the endpoints that cannot start there."""
    reply = target.get("/v1/hosts")
    if reply.status_code != httpx2.codes.OK:
        yield Finding("hosts", CheckStatus.WARN, "this key may not list them", "use a key with the scope hosts:read")
        return
    answer = reply.json()
    hosts: list[dict[str, Any]] = answer["hosts"]
    if not hosts:
        yield Finding("hosts", CheckStatus.WARN, "no host has connected yet", "start one with: lamplighter runner")
    for host in hosts:
        yield _describe_host(host)
        yield from _check_version(answer.get("version"), host)
        if assigned := host.get("gpus_assigned"):
            yield Finding(f"gpus of {host['id']}", CheckStatus.OK, f"its runner uses {assigned}")
        for gpu in host["gpus"]:
            verdict = CheckStatus.OK if gpu["fitness"] == "fit" else CheckStatus.WARN
            yield Finding(f"gpu {gpu['uuid']}", verdict, f"{gpu['name']}: {gpu['fitness']}", gpu.get("reason") or "")
        yield from _check_engine(host)
        if host.get("secrets_on_disk"):
            what = "files of secrets are on its disk while a job has them, not in memory"
            yield Finding(f"secrets of {host['id']}", CheckStatus.WARN, what, SECRETS_FIX)
        yield from _check_blocked_tasks(host)
        yield from _check_images(host)
        yield from _check_volumes(host)
        yield from _check_endpoints(host)
        yield from _check_gpu_injection(host)


def check_endpoints(target: DoctorTarget) -> Iterable[Finding]:
    """List the endpoints for which two hosts have another image or another endpoint.toml."""
    reply = target.get("/v1/endpoints")
    if reply.status_code != httpx2.codes.OK:
        return
    for endpoint in reply.json()["endpoints"]:
        if endpoint.get("differs"):
            sources = endpoint.get("sources", {})
            programs = endpoint["programs"].items()
            versions = ", ".join(
                f"{host}: {_describe_program(program, sources.get(host))}" for host, program in programs
            )
            fix = "give these hosts the same endpoint.toml and the same image, best by its digest"
            if sources.keys() >= endpoint["programs"].keys():
                fix = "give these hosts the same folder, and build its image again if it has one"
            yield Finding(f"endpoint {endpoint['name']}", CheckStatus.WARN, f"its hosts differ ({versions})", fix)


def _describe_program(program: dict[str, Any], source: str | None) -> str:
    """Return the first digits of the digests of an image and an endpoint.toml.

    In place of an image that was built on its host, its folder is shown: the ids of images that were built on two hosts
    always differ.
    """
    image = ("folder", source) if source else ("image", program.get("image_digest"))
    digests = (image, ("endpoint.toml", program.get("endpoint_digest")))
    return " ".join(f"{name} {digest.partition(':')[2][:12]}" for name, digest in digests if digest)


def _describe_host(host: dict[str, Any]) -> Finding:
    """Return the state of a host. Off is normal for one that the edge can power on: only these have a history."""
    name, state = f"host {host['id']}", host["state"]
    if state == "off" and not host.get("history"):
        fix = f"start its runner, or declare [hosts.{host['id']}] so that the edge can power it on"
        return Finding(name, CheckStatus.WARN, "off, and the edge cannot power it on", fix)
    offered = f"{state}, offers {', '.join(host['endpoints']) or 'nothing'}"
    if state in TROUBLED_STATES:
        why = host["history"][-1]["why"] if host.get("history") else ""
        fix = f"{why}; when it is repaired: lamplighter power {host['id']} auto".removeprefix("; ")
        return Finding(name, CheckStatus.WARN, offered, fix)
    return Finding(name, CheckStatus.OK, offered)


def _check_version(edge_version: str | None, host: dict[str, Any]) -> Iterable[Finding]:
    """Check that the host's runner is at most one minor release from the edge. One before 0.2 does not tell."""
    if version := host.get("version"):
        name, warning = f"version of {host['id']}", version_warning(edge_version, host)
        if warning is None:
            yield Finding(name, CheckStatus.OK, f"runner {version}")
        else:
            what, _, fix = warning.partition(": ")
            yield Finding(name, CheckStatus.WARN, what, fix)


def _check_engine(host: dict[str, Any]) -> Iterable[Finding]:
    """Check that the host's engine answers, and that it isolates jobs from the machine."""
    name, engine = f"engine of {host['id']}", host.get("engine")
    if why := host.get("engine_away"):
        yield Finding(name, CheckStatus.FAIL, f"{engine} does not answer, jobs wait: {why}", ENGINE_AWAY_FIX)
    elif engine == "process" and host.get("isolation") == "bubblewrap":
        user = host.get("run_as") or "the runner's user"
        yield Finding(name, CheckStatus.OK, f"jobs run as processes of {user}, each in a sandbox of bubblewrap")
    elif engine == "process":
        user = host.get("run_as") or "the runner's user"
        yield Finding(
            name, CheckStatus.WARN, f"jobs run as plain processes of {user}, not in containers", PROCESS_ENGINE_FIX
        )
    elif engine:
        runtimes = ", ".join(host.get("runtimes", ())) or engine
        isolation = host.get("isolation") or engine
        yield Finding(name, CheckStatus.OK, f"jobs run by {engine}, isolated by {isolation}; it has {runtimes}")


def _check_blocked_tasks(host: dict[str, Any]) -> Iterable[Finding]:
    """List the tasks that the host's runner has to do and cannot do now."""
    for what in host.get("waits", ()):
        if what.startswith(f"{ENDPOINTS_TASK}: "):
            yield Finding(f"runner of {host['id']}", CheckStatus.WARN, f"cannot {what}", ENDPOINTS_FIX)
            continue
        # Our own errors have the fix after the cause in parentheses. The edge answers in the language of the command.
        why, end, fix = what.rpartition("）：" if "）：" in what else "): ")
        shown, fix = (f"{why}{end[:1]}", fix) if end else (what, "read that runner's log")
        yield Finding(f"runner of {host['id']}", CheckStatus.WARN, f"cannot {shown}", fix)


def _check_images(host: dict[str, Any]) -> Iterable[Finding]:
    """List the images that the host lacks, or could not pull again."""
    for image in host.get("images", ()):
        name = f"image on {host['id']}"
        if why := image.get("why"):
            what, bracket, fix = why.partition("): ")  # the cause in parentheses, then the fix
            yield Finding(name, CheckStatus.WARN, f"{what})" if bracket else what, fix)
        elif image["state"] == "pulling":
            yield Finding(name, CheckStatus.OK, f"{image['image']} is pulled: {display.format_pull(image)}")


def _check_volumes(host: dict[str, Any]) -> Iterable[Finding]:
    """List the volumes that the host has not filled."""
    for volume in host.get("volumes", ()):
        name = f"volume {', '.join(volume['names'])} on {host['id']}"
        if why := volume.get("why"):
            what, bracket, fix = why.partition("): ")
            yield Finding(name, CheckStatus.WARN, f"{what})" if bracket else what, fix)
        elif volume["state"] == "filling":
            yield Finding(name, CheckStatus.OK, f"is being downloaded: {display.format_pull(volume)}")


def _check_endpoints(host: dict[str, Any]) -> Iterable[Finding]:
    """List the endpoints that cannot start on the host now."""
    # An edge of the release before has only `cannot`.
    for endpoint, lacks in host.get("unmet", {}).items():  # known also of a host that is off
        name = f"{endpoint} on {host['id']}"
        yield Finding(name, CheckStatus.WARN, f"cannot start there, the host lacks {lacks}", UNMET_FIX)
    for endpoint, why in host.get("unschedulable", host.get("cannot", {})).items():
        if why in REPORTED_ONCE:
            continue
        yield Finding(
            f"{endpoint} on {host['id']}",
            CheckStatus.WARN,
            f"cannot start now: {why}",
            UNSCHEDULABLE_FIXES.get(why, ""),
        )


def _check_gpu_injection(host: dict[str, Any]) -> Iterable[Finding]:
    """Check how the host's engine gives GPUs to containers, and its warm containers."""
    if method := host.get("injection"):
        verdict, fix = (CheckStatus.FAIL, TOOLKIT_FIX) if method == "none" else (CheckStatus.OK, "")
        yield Finding(f"gpu access of {host['id']}", verdict, f"given to containers by {method}", fix)
    for slots in host.get("warm", ()):
        if not (slots["ready"] or slots["loading"] or slots.get("why")):
            continue  # no warm container is wanted there now
        verdict = CheckStatus.WARN if slots.get("why") else CheckStatus.OK
        fix = "fix the image, or set warm = false in its endpoint.toml" if slots.get("why") else ""
        yield Finding(f"warm slots of {host['id']}", verdict, display.format_warm_slots(slots), fix)


def check_disk(target: DoctorTarget) -> Iterable[Finding]:
    """Check the free space of the disk with the data folder."""
    folder = next(folder for folder in (target.data, *target.data.resolve().parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    verdict = CheckStatus.OK if free > MIN_FREE_BYTES else CheckStatus.WARN
    fix = "" if verdict is CheckStatus.OK else "free some space, or move the data folder with --data"
    yield Finding("disk", verdict, f"{free / 1000**3:.0f} GB free under {folder}", fix)


def check_certificate(target: DoctorTarget) -> Iterable[Finding]:
    """Check how long the certificate is valid: the one of an https address, or the one that `up` serves."""
    shown = fetch_certificate(target.address.url) if target.address.url.startswith("https:") else None
    if shown is None:
        try:
            shown = read_certificate(first_certificate((target.data / SERVED_CERTIFICATE).read_text()))
        except (OSError, ValueError):
            return
    days = (shown.not_after - datetime.now(UTC)).days
    what = f"of {shown.subject} ends in {days} days ({shown.not_after:%Y-%m-%d})"
    verdict = CheckStatus.FAIL if days < 0 else CheckStatus.WARN if days < EXPIRY_WARNING_DAYS else CheckStatus.OK
    fix = "" if verdict is CheckStatus.OK else "renew it: edge and broker read the new files by themselves"
    yield Finding("certificate", verdict, what, fix)


Check = Callable[[DoctorTarget], Iterable[Finding]]
EDGE_CHECKS: Mapping[str, Check] = {
    "broker": check_readiness,
    "key": check_key,
    "hosts": check_hosts,
    "endpoints": check_endpoints,
}
LOCAL_CHECKS: tuple[Check, ...] = (check_disk, check_certificate)
STATUS_STYLES = {CheckStatus.OK: "green", CheckStatus.WARN: "yellow", CheckStatus.FAIL: "red"}


def _run_checks(target: DoctorTarget) -> Iterator[Finding]:
    try:
        found = list(check_edge(target))
    except httpx2.HTTPError as error:
        found = [_describe_silent_edge(target.address.url, error)]
    yield from found
    if all(finding.verdict is not CheckStatus.FAIL for finding in found):
        for name, check in EDGE_CHECKS.items():
            yield from _run_edge_check(name, check, target)
    for check in LOCAL_CHECKS:
        yield from check(target)
    if not _is_server_without_runner(target.data):
        yield from server_parts.check_machine(target.data)


def _is_server_without_runner(data: Path) -> bool:
    """Return whether `up --no-runner` serves this data folder: such a machine needs no Docker and no GPU."""
    return (data / "edge").exists() and not (data / "runner").exists()


def _describe_silent_edge(url: str, error: httpx2.HTTPError) -> Finding:
    if find_verification_error(error) is not None:
        what, _, fix = str(unreachable(url, error)).partition(". ")
        return Finding(EDGE_CHECK, CheckStatus.FAIL, what, fix)
    fix = "start it with: lamplighter up, or choose another with --url"
    return Finding(EDGE_CHECK, CheckStatus.FAIL, f"no answer from {url}: {error}", fix)


def _run_edge_check(name: str, check: Check, target: DoctorTarget) -> Iterator[Finding]:
    """Run one check of the edge. A timeout of the edge fails this check and not the next ones."""
    try:
        yield from check(target)
    except httpx2.HTTPError as error:
        yield Finding(
            name, CheckStatus.FAIL, f"the edge did not answer in time ({error})", "fix the checks above first"
        )


@click.command()
@client_command
def doctor(session: CliContext) -> None:
    """Check the edge, the network to it, and this machine. Exit code 0 if nothing failed, 3 without an edge, else 1."""
    headers = auth_headers(session.address.key) | language_headers(session.language)
    with map_http_errors(session.address.url):
        url = session.address.url
        http = httpx2.Client(
            base_url=url,
            headers=headers,
            timeout=EDGE_TIMEOUT_S,
            mounts=bypass_proxies_for_loopback(url),
            verify=make_ssl_context(url, session.address.ca, session.address.pin) or True,
        )
    with http:
        findings = list(_run_checks(DoctorTarget(session.address, session.data, http)))
    rows = [(say(f.name), Text(f.verdict, STATUS_STYLES[f.verdict]), say(f.what), say(f.fix)) for f in findings]
    # `mend` is the name of `fix` in the release before; programs may still read it.
    answer = [msgspec.to_builtins(finding) | {"mend": finding.fix} for finding in findings]
    session.show_table(answer, ("CHECK", "", "FOUND", "FIX"), rows, "nothing checked")
    failed = {finding.name for finding in findings if finding.verdict is CheckStatus.FAIL}
    if failed:
        sys.exit(UNREACHABLE if EDGE_CHECK in failed else FAILED)
