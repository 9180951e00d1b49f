"""`lamplighter doctor`: what is well, what is not, and how to mend it."""

import asyncio
import sys
from collections.abc import Iterator

import click
import httpx
from rich.text import Text

from lamplighter.cli import show
from lamplighter.cli.checks import EDGE, LOCAL, REMOTE, Check, Finding, Patient, Verdict, edge_answers
from lamplighter.cli.machine import engine_findings, gpu_findings
from lamplighter.cli.session import FAILED, UNREACHABLE, Session, client_command
from lamplighter.shared import key_headers, reachable
from schemas.loopback import past_proxies

STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red"}
TIMEOUT_S = 5.0


def _examine(patient: Patient) -> Iterator[Finding]:
    try:
        found = list(edge_answers(patient))
    except httpx.HTTPError as error:
        mend = "start it with: lamplighter up, or name another with --url"
        found = [Finding(EDGE, Verdict.FAIL, f"no answer from {patient.address.url}: {error}", mend)]
    yield from found
    if all(finding.verdict is not Verdict.FAIL for finding in found):
        for name, check in REMOTE.items():
            yield from _asked(name, check, patient)
    for check in LOCAL:
        yield from check(patient)
    yield from asyncio.run(engine_findings())
    yield from asyncio.run(gpu_findings())


def _asked(name: str, check: Check, patient: Patient) -> Iterator[Finding]:
    """What `check` finds; one that the edge does not answer in time keeps no other from being made."""
    try:
        yield from check(patient)
    except httpx.HTTPError as error:
        yield Finding(name, Verdict.FAIL, f"the edge did not answer in time ({error})", "see what failed before it")


@click.command()
@client_command
def doctor(session: Session) -> None:
    """Check the edge, the way to it, and this machine. Exit 0 when nothing failed, 3 without an edge, else 1."""
    headers = key_headers(session.address.key)
    with reachable(session.address.url):
        url = session.address.url
        http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, mounts=past_proxies(url))
    with http:
        findings = list(_examine(Patient(session.address, session.data, http)))
    rows = [(f.name, Text(f.verdict, STYLES[f.verdict]), f.what, f.mend) for f in findings]
    session.show(findings, lambda: show.table(session.out, ("CHECK", "", "FOUND", "MEND"), rows, "nothing checked"))
    failed = {finding.name for finding in findings if finding.verdict is Verdict.FAIL}
    if failed:
        sys.exit(UNREACHABLE if EDGE in failed else FAILED)
