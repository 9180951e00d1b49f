"""No log holds a key, a token or a signature, at any level and after any error."""

import json
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
import websockets
from websockets.exceptions import InvalidStatus

from lamplighter.api import ApiRequest, decode_json
from schemas.credentials import decode_join_token
from tests.e2e.test_up import up
from tests.support.command import joined_runner, run_lamplighter
from tests.support.installation import run_new_installation
from tests.support.reserved_ports import HOST, reserve_ports
from tests.support.wait import wait_for
from tests.support.webhook_receiver import WebhookReceiver, run_receiver, statuses_in_order

WRONG = "lamp_nobody_" + "s3cr3t" * 6
QUERY_SECRET = "X-Amz-Signature=0123456789abcdef0123456789abcdef"
LOGIN_SECRET = "a-login-of-the-receiver"


def strings_in(value: object) -> set[str]:
    """Return all texts of 16 characters or more in a JSON value, except addresses."""
    if isinstance(value, dict):
        return {text for one in value.values() for text in strings_in(one)}
    return {value} if isinstance(value, str) and len(value) >= 16 and "://" not in value else set()


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


async def test_no_log_of_a_full_run_holds_a_secret_that_was_used_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every kind of secret is sent, some of it to a part that fails and logs why."""
    data = tmp_path / "data"
    async with run_receiver(statuses_in_order(500)) as receiver:
        address = receiver.url.replace("files.test", HOST).removeprefix("http://").removesuffix("/hook")
        monkeypatch.setenv("LAMPLIGHTER_LOG_LEVEL", "debug")
        monkeypatch.setenv("LAMPLIGHTER_OUTBOUND__ALLOW", json.dumps([address]))
        with reserve_ports(2) as (tls, broker):
            public = ("--public", HOST, "--listen", HOST, "--tls-port", str(tls), "--broker-port", str(broker))
            with up(data, *public, "--log-level", "debug") as (process, said):
                secrets = await use_every_secret(data, said, address)
                signatures = await wait_for(partial(signatures_at, receiver))
                process.terminate()
                assert process.stderr is not None
                (data / "logs" / "up.log").write_text(process.stderr.read())
        secrets |= {signature.partition(",")[2] for signature in signatures}
    logs = {path: path.read_text() for path in [*(data / "logs").iterdir(), data / "broker" / "nats-server.log"]}
    edge_log = logs[data / "logs" / "edge.log"]
    assert {path.name for path in logs} >= {"edge.log", "runner.log", "joined.log", "up.log", "nats-server.log"}
    assert {"request_served", "authentication_failed"} <= set(edge_log.split())
    assert len(secrets) > 15
    assert [(path.name, secret) for path, log in logs.items() for secret in secrets if secret in log] == []


async def use_every_secret(data: Path, said: dict[str, str], receiver: str) -> set[str]:
    """Do what needs a key, token, cookie, signature or password; return all of them."""
    made = await run_lamplighter("keys", "create", "ann", "--data", data, "--json")
    key = json.loads(made.stdout)["key"]
    invited = (await run_lamplighter("hosts", "add", "gpu-2", "--data", data)).stdout.split()[-1]
    stored = {text for name in ("keys.json", "broker.json", "client.json") for text in json_texts(data / name)}
    monitor = json.loads((data / "broker.json").read_bytes())["monitor"]
    secrets = {key, said["key"], invited, WRONG, QUERY_SECRET, LOGIN_SECRET, urlsplit(monitor).path, *stored}
    joining = decode_join_token(invited)
    secrets |= {joining.password, joining.key}
    with joined_runner(data / "joined", "--join", invited) as runner:
        bearer = {"Authorization": f"Bearer {key}"}
        async with httpx2.AsyncClient(base_url=said["url"], headers=bearer, timeout=60) as client:
            secrets |= await sign_in(client, key)
            job = {"endpoint": "echo", "webhook": {"url": f"http://{receiver}/hook?{QUERY_SECRET}"}}
            file = (await client.post("/v1/assets", content=b"a file")).json()
            await ended(client, {**job, "input": {"file": f"sha256:{file['sha256']}"}})
            for url in (f"http://{receiver}/a?{QUERY_SECRET}", f"http://user:{LOGIN_SECRET}@{receiver}/b"):
                await client.post("/v1/jobs", json={**job, "input": {"file": url}})
            done = await ended(client, {**job, "input": {"text": "again", "file": f"sha256:{file['sha256']}"}})
            signed = done["output"]["files"][0]["url"]
            secrets.add(parse_qs(urlsplit(signed).query)["signature"][0])
            assert (await client.get(signed, headers={"Authorization": ""})).status_code == 200
            assert (await client.get(f"{signed}x", headers={"Authorization": ""})).status_code == 401
            secrets.add((await client.get("/v1/webhooks/secret")).json()["secret"])
            await wait_for(lambda: is_online(client, "gpu-2"))
        runner.terminate()
        (data / "logs" / "joined.log").write_text(runner.stderr.read() if runner.stderr else "")
    return secrets


async def signatures_at(receiver: WebhookReceiver) -> list[str]:
    """Return the signatures of deliveries; downloads of inputs arrive there too."""
    return [got.headers["webhook-signature"] for got in receiver.got if "webhook-signature" in got.headers]


def json_texts(file: Path) -> set[str]:
    return {text for text in strings_in(json.loads(file.read_bytes())) if not text.startswith("sha256:")}


async def sign_in(client: httpx2.AsyncClient, key: str) -> set[str]:
    """Make a token, a ticket and a session, and use each; return them."""
    token = (await client.post("/v1/tokens", json={})).json()["token"]
    ticket = (await client.post("/v1/session/tickets")).json()
    async with httpx2.AsyncClient(base_url=str(client.base_url), timeout=60) as browser:
        assert (await browser.get("/v1/jobs", params={"token": token})).status_code == 200
        assert (await browser.get("/v1/jobs", params={"token": WRONG})).status_code == 401
        assert (await browser.get(ticket["path"])).status_code == 200
        assert (await browser.post("/v1/session", json={"key": f"{key}x"})).status_code == 401
        assert (await browser.post("/v1/session", json={"ticket": ticket["ticket"]})).is_success
        cookie = browser.cookies["lamplighter_session"]
        assert (await browser.get("/v1/jobs")).status_code == 200
    return {token, ticket["ticket"], cookie}


async def ended(client: httpx2.AsyncClient, job: dict[str, object]) -> dict[str, object]:
    reply = await client.post("/v1/jobs", json=job, headers={"Prefer": "wait=60"})
    assert reply.json()["status"] == "succeeded", reply.text
    return reply.json()


async def is_online(client: httpx2.AsyncClient, host: str) -> bool:
    hosts = (await client.get("/v1/hosts")).json()["hosts"]
    return any((one["id"], one["state"]) == (host, "online") for one in hosts)
