"""Measure the cost of an account for each host at the broker: of a claim, of a start, and of a reload with 200 hosts.

Claims and starts are compared to a broker with a single account. Both brokers run at once and are measured alternately,
so that noise on the machine affects both.
"""

import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio

from bench.bus import claim_one, submit_one
from bench.figures import Figure, p50, p99
from bench.installation import BenchInstallation
from bench.start import first_line_s
from bus.interface import BrokerUnreachable, Bus
from bus.open import open_edge, open_runner
from bus.server.process import HostAccounts, hash_password, new_password, run_server
from bus.settings import BrokerSettings
from lamplighter import AsyncClient
from schemas.job import Priority
from tests.support.installation import Installation, wait_until_ready
from tests.support.nats_broker import BrokerProcess, SingleAccountBroker

CLAIMS = 400
STARTS = 25
HOSTS = 200
WORKERS = 8
JOBS = 1500
EVERY = 50  # jobs between two reloads under load
AIM = 1.1


@asynccontextmanager
async def _buses(server: BrokerProcess) -> AsyncIterator[tuple[Bus, Bus]]:
    async with (
        run_server(server),
        open_edge(server.settings("edge")) as edge,
        open_runner(server.settings("runner")) as runner,
    ):
        await edge.job_queue.ensure_consumers(["echo"])
        yield edge, runner


async def _claims(folder: Path) -> AsyncIterator[Figure]:
    async with (
        _buses(SingleAccountBroker(folder / "one")) as one,
        _buses(BrokerProcess(folder / "apart")) as apart,
    ):
        took: dict[str, list[float]] = {"one": [], "apart": []}
        for number in range(CLAIMS):
            for edge, _ in (one, apart):
                await submit_one(edge, f"job-{number}")
        for _ in range(CLAIMS):
            for name, (_, runner) in (("one", one), ("apart", apart)):
                began = time.perf_counter()
                await claim_one(runner)
                took[name].append(time.perf_counter() - began)
        before, now = (p50(took[name]) * 1e3 for name in ("one", "apart"))
        note = (
            f"p99 {p99(took['apart']) * 1e3:.2f} ms; in one account p50 {before:.2f}, p99 {p99(took['one']) * 1e3:.2f}"
        )
        yield Figure("hosts", "a claim by a runner in an account of its own, p50", now, "ms", note=note)
        yield Figure("hosts", "a claim, against one account", now / before, "x", AIM)


@asynccontextmanager
async def _bench_installation(folder: Path, server: BrokerProcess) -> AsyncIterator[BenchInstallation]:
    installation = Installation(folder, "process", None)
    installation.server = server
    keys = await installation.open()
    try:
        await installation.start_edge(LAMPLIGHTER_RECONCILE_EVERY_S="15")
        async with AsyncClient(installation.url, keys["ann"], cache=folder / "digests.json") as client:
            await wait_until_ready(client)
            await installation.start_runner()
            yield BenchInstallation(installation, client, keys["ann"], keys["admin"])
    finally:
        await installation.close()


async def _starts(folder: Path) -> AsyncIterator[Figure]:
    one, apart = folder / "first", folder / "second"
    for place in (one, apart):
        place.mkdir()
    async with (
        _bench_installation(one, SingleAccountBroker(one / "broker")) as before,
        _bench_installation(apart, BrokerProcess(apart / "broker")) as now,
    ):
        took: tuple[list[float], list[float]] = ([], [])
        for number in range(STARTS + 1):
            for made, seconds in zip((before, now), took, strict=True):
                took_s = await first_line_s(made)
                if number:  # the first start at each broker is a warm-up
                    seconds.append(took_s)
        note = f"in one account {p50(took[0]) * 1e3:.0f} ms"
        yield Figure("hosts", "202 → first line, accounts, process engine", p50(took[1]) * 1e3, "ms", note=note)
        yield Figure("hosts", "202 → first line, against one account", p50(took[1]) / p50(took[0]), "x", AIM)


def _rss_mb(server: BrokerProcess) -> float:
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def _work(bus: Bus, done: list[str], ended: anyio.Event) -> None:
    """Work as a runner does: wait for a pointer, fetch it, ack it."""
    while not ended.is_set():
        delivery = await bus.job_queue.fetch("echo", Priority.NORMAL, 0.3)
        if delivery is not None:
            done.append(delivery.pointer.id)
            await _retry_until_answered(delivery.ack)


async def _retry_until_answered(ask: Callable[[], Awaitable[None]]) -> None:
    """Repeat the request until the broker answers, as a runner does."""
    while True:
        try:
            return await ask()
        except BrokerUnreachable:
            await anyio.sleep(0.05)


async def _join_many_hosts(folder: Path) -> AsyncIterator[Figure]:
    """Let 200 hosts join and connect. Then let another one join after every 50 jobs, while 8 of the 200 work."""
    passwords = {f"h{number}": new_password() for number in range(HOSTS + JOBS // EVERY)}
    hashes = {host: hash_password(password) for host, password in passwords.items()}
    first = dict(list(hashes.items())[:HOSTS])
    server = BrokerProcess(folder / "crowd")
    async with AsyncExitStack() as stack:
        edge, _ = await stack.enter_async_context(_buses(server))
        roster = HostAccounts(server.settings("edge"), folder / "crowd", server.reload_command)
        empty_mb = _rss_mb(server)
        began = time.perf_counter()
        await roster.replace_all(first)
        yield Figure("hosts", f"{HOSTS} hosts let in at once", (time.perf_counter() - began) * 1e3, "ms")
        runners = [
            await stack.enter_async_context(open_runner(BrokerSettings(server.url, f"runner-{host}", passwords[host])))
            for host in first
        ]
        yield Figure("hosts", f"memory of the broker for {HOSTS} connected hosts", _rss_mb(server) - empty_mb, "MB")
        joined, lost, twice = await _work_while_joining(edge, runners[:WORKERS], roster, hashes)
        note = f"p99 {p99(joined) * 1e3:.0f} ms, {len(joined)} times, while {WORKERS} runners work"
        yield Figure("hosts", f"one more host beside {HOSTS} connected ones, p50", p50(joined) * 1e3, "ms", note=note)
        note = f"{len(joined)} hosts joined meanwhile, at least two reloads each; taken twice: {twice}"
        yield Figure("hosts", f"of {JOBS} jobs not taken", lost, "jobs", 0, note=note)


async def _work_while_joining(
    edge: Bus, runners: list[Bus], roster: HostAccounts, hashes: Mapping[str, str]
) -> tuple[list[float], int, int]:
    """Return the seconds for each host that joined, the number of jobs not taken, and the number taken twice."""
    done, joined, ended = list[str](), list[float](), anyio.Event()
    async with anyio.create_task_group() as tasks:
        for runner in runners:
            tasks.start_soon(_work, runner, done, ended)
        for number in range(JOBS):
            await submit_one(edge, f"job-{number}")
            if number % EVERY == 0:
                listed = dict(list(hashes.items())[: HOSTS + 1 + number // EVERY])
                began = time.perf_counter()
                await roster.replace_all(listed)
                joined.append(time.perf_counter() - began)
        with anyio.move_on_after(5.0):
            while len(set(done)) < JOBS:  # noqa: ASYNC110 - the runners take them, over the broker
                await anyio.sleep(0.05)
        ended.set()
    return joined, JOBS - len(set(done)), len(done) - len(set(done))


async def rows() -> AsyncIterator[Figure]:
    """Measure claims and starts next to a single-account broker, then the reloads with many hosts."""
    with tempfile.TemporaryDirectory(prefix="lamplighter-hosts-") as folder:
        for bench in (_claims, _starts, _join_many_hosts):
            async for row in bench(Path(folder)):
                yield row
