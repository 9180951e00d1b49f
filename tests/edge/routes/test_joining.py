"""A removed host, as later responses show it."""

from pathlib import Path

from tests.support.host_access import FakeHostAccess
from tests.support.served_edge import serve_edge


async def test_a_host_that_was_removed_is_not_listed_any_more(tmp_path: Path):
    async with serve_edge(tmp_path, FakeHostAccess()) as edge:
        assert (await edge.admin.post("/v1/hosts", json={"id": "gpu-1"})).status_code == 201
        await edge.world.send_heartbeat("gpu-1")
        assert [host["id"] for host in (await edge.admin.get("/v1/hosts")).json()["hosts"]] == ["gpu-1"]
        assert (await edge.admin.delete("/v1/hosts/gpu-1")).status_code == 204
        assert (await edge.admin.get("/v1/hosts")).json()["hosts"] == []
