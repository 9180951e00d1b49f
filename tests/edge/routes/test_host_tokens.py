"""`/v1/host-tokens`: the whole way of a shared token over HTTP, with the exchange as a runner makes it."""

import os
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from msgspec.structs import replace

from runner.assets.port import EdgeUnavailable
from runner.host import enrollment
from runner.host.enrollment import JoinRefused, RetryClock, request_enrollment
from runner.settings import RunnerSettings
from schemas.credentials import JoinRequest, SharedJoinToken, decode_any_join_token, encode_join_token
from tests.support.host_access import FakeHostAccess
from tests.support.installation import ROOT
from tests.support.served_edge import ServedEdge, serve_edge

TERMS = {"uses": 2, "ttl_s": 3600, "prefix": "slurm"}


class SteppedClock:
    """A clock that only `sleep` moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)

    @property
    def parts(self) -> RetryClock:
        return RetryClock(lambda: self.now, self.sleep)


async def create(edge: ServedEdge, **terms: Any) -> SharedJoinToken:
    made = (await edge.admin.post("/v1/host-tokens", json=TERMS | terms)).json()
    assert made["command"] == f"lamplighter runner --join {made['token']}"
    shared = decode_any_join_token(made["token"])
    assert isinstance(shared, SharedJoinToken)
    return replace(shared, edge=edge.url)


async def list_tokens(edge: ServedEdge) -> list[tuple[str, int, int]]:
    listed = (await edge.admin.get("/v1/host-tokens")).json()["tokens"]
    assert all(one["token"] is None for one in listed)
    return [(one["state"], one["used"], one["hosts"]) for one in listed]


def asks(shared: SharedJoinToken, instance: str, host: str | None = None) -> JoinRequest:
    return JoinRequest(token=shared.id, secret=shared.secret, instance=instance.ljust(16, "_"), host=host)


async def join(shared: SharedJoinToken, data: Path, host: str = "local") -> RunnerSettings:
    """Join as `lamplighter runner --join` does, and return the settings that the runner then has."""
    settings = RunnerSettings(data=data, host=host)
    await anyio.to_thread.run_sync(enrollment.join, settings, encode_join_token(shared))
    return enrollment.apply_enrollment(settings)


async def test_the_whole_way_of_a_token(tmp_path: Path):
    async with serve_edge(tmp_path / "edge", FakeHostAccess()) as edge:
        shared = await create(edge, pool="echo")
        first = await join(shared, tmp_path / "one")
        second = await join(shared, tmp_path / "two", "slurm-7")
        assert (second.host, first.pool, second.pool) == ("slurm-7", "echo", "echo")
        assert await list_tokens(edge) == [("used_up", 2, 2)]
        with pytest.raises(JoinRefused, match="2 hosts have joined"):
            await join(shared, tmp_path / "three")
        again = await join(shared, tmp_path / "one")
        assert again.host == first.host
        assert again.edge.key != first.edge.key
        own = {"Authorization": f"Bearer {again.edge.key}"}
        assert (await edge.anyone.post("/v1/hosts/slurm-7/leave", headers=own)).status_code == 403
        assert (await edge.admin.post(f"/v1/hosts/{first.host}/leave")).status_code == 403
        assert (await edge.anyone.post(f"/v1/hosts/{first.host}/leave", headers=own)).status_code == 204
        assert (await edge.anyone.post(f"/v1/hosts/{first.host}/leave", headers=own)).status_code == 401
        assert await list_tokens(edge) == [("used_up", 2, 1)]
        trail = (await edge.admin.get("/v1/audit")).json()["events"]
    assert [(event["action"], event["subject"]) for event in reversed(trail)] == [
        ("host_token_created", shared.id),
        *(("host_joined", host) for host in (first.host, "slurm-7", first.host)),
        ("host_left", first.host),
    ]
    assert trail[1]["by"] == shared.id


async def revoke(edge: ServedEdge, token_id: str, *options: str) -> list[str]:
    """Revoke the token by the command line; return what it prints."""
    environ = {**os.environ, "LAMPLIGHTER_URL": edge.url, "LAMPLIGHTER_KEY": edge.texts["admin"], "COLUMNS": "200"}
    argv = [sys.executable, "-m", "lamplighter", "hosts", "token", "revoke", token_id, *options]
    return (await anyio.run_process(argv, env=environ, cwd=ROOT)).stdout.decode().splitlines()


async def test_a_revoked_token_says_so_and_its_hosts_stay_until_they_are_removed(tmp_path: Path):
    async with serve_edge(tmp_path / "edge", FakeHostAccess()) as edge:
        shared = await create(edge)
        await join(shared, tmp_path / "one")
        lines = await revoke(edge, shared.id)
        remedy = f"lamplighter hosts token revoke {shared.id} --hosts"
        assert lines == [f"join token {shared.id} revoked", f"1 of its hosts stay: {remedy} removes them"]
        with pytest.raises(JoinRefused, match="was revoked"):
            await join(shared, tmp_path / "two")
        assert await list_tokens(edge) == [("revoked", 1, 1)]
        other = await create(edge)
        await join(other, tmp_path / "three")
        assert await revoke(edge, shared.id, "--hosts") == [f"join token {shared.id} revoked"]
        assert sorted(await list_tokens(edge)) == [("active", 1, 1), ("revoked", 1, 0)]
        trail = (await edge.admin.get("/v1/audit")).json()["events"]
        removed = [row["details"] for row in trail if row["action"] == "host_removed"]
        assert removed == [{"token": shared.id}]
        for unknown in ("nothing", "no.token"):
            assert (await edge.admin.delete(f"/v1/host-tokens/{unknown}")).status_code == 404


async def test_without_the_secret_nobody_joins(tmp_path: Path):
    async with serve_edge(tmp_path / "edge", FakeHostAccess()) as edge:
        shared = await create(edge)
        with pytest.raises(JoinRefused, match="not known here"):
            await join(replace(shared, secret="x" * 43), tmp_path / "one")
        assert await list_tokens(edge) == [("active", 0, 0)]
        assert (tmp_path / "one" / "join_failed.txt").exists()
        assert (await edge.ann.post("/v1/host-tokens", json=TERMS)).status_code == 403


async def test_a_runner_waits_for_the_name_of_one_that_was_killed(tmp_path: Path):
    async with serve_edge(tmp_path / "edge", FakeHostAccess()) as edge:
        shared = await create(edge)
        await join(shared, tmp_path / "one", "slurm-1")
        await edge.world.send_heartbeat("slurm-1")
        clock = SteppedClock()
        with pytest.raises(JoinRefused, match="another runner is online as slurm-1"):
            await anyio.to_thread.run_sync(request_enrollment, shared, asks(shared, "two", "slurm-1"), clock.parts)
        assert clock.now > 60
        await edge.world.bus.heartbeats.delete("slurm-1")
        assert (await join(shared, tmp_path / "two", "slurm-1")).host == "slurm-1"


async def test_while_the_edge_is_away_a_host_goes_on_with_what_it_kept(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("runner.host.enrollment.RETRY_LIMIT_S", 0)
    async with serve_edge(tmp_path / "edge", FakeHostAccess()) as edge:
        shared = await create(edge)
        joined = await join(shared, tmp_path / "one")
        other = await create(edge)
    assert await join(shared, tmp_path / "one") == joined
    with pytest.raises(EdgeUnavailable, match="does not answer"):
        await join(replace(other, edge=edge.url), tmp_path / "one")
