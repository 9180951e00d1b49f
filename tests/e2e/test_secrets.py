"""No log holds a key, a token or a signature, at any level and after any error."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest
import websockets
from websockets.exceptions import InvalidStatus

from lamplighter.api import ApiRequest, decode_json
from tests.support.installation import run_new_installation

WRONG = "lamp_nobody_" + "s3cr3t" * 6


async def test_logs_hold_no_secret(tmp_path: Path, anyio_backend: object):
    async with run_new_installation(tmp_path, "process", None, LAMPLIGHTER_LOG_LEVEL="debug") as running:
        made = await running.ann.call(ApiRequest(method="POST", path="/v1/tokens", read=decode_json, body={}))
        key = running.ann._http.headers["authorization"].removeprefix("Bearer ")
        http, bare = running.ann._http, {"Authorization": ""}
        sockets = running.installation.url.replace("http", "ws") + "/v1/events"
        assert (await http.get("/v1/jobs", params={"token": made["token"]}, headers=bare)).status_code == 200
        assert (await http.get("/v1/jobs", params={"token": made["token"] + "x"}, headers=bare)).status_code == 401
        assert (await http.get("/v1/jobs", params={"token": WRONG}, headers=bare)).status_code == 401
        assert (await http.get("/v1/jobs?signature=s1gn&owner=ann&expires=1", headers=bare)).status_code == 401
        async with websockets.connect(f"{sockets}?token={made['token']}"):
            pass
        with pytest.raises(InvalidStatus):
            async with websockets.connect(f"{sockets}?token={WRONG}"):
                pass
        for path in ("/easy/query", "/ws"):
            reply = await http.get(path, params={"key": WRONG, "code": "x"}, headers=bare)
            assert reply.is_error
            assert WRONG not in reply.text
        async with websockets.connect(f"{running.installation.url.replace('http', 'ws')}/ws?key={key}"):
            pass
        await running.installation.edge.stop()
        log = (tmp_path / "edge.log").read_text()
    assert "serving" in log
    for secret in (made["token"], key, WRONG, "s1gn", urlsplit(running.installation.server.monitor_url).path):
        assert secret not in log
