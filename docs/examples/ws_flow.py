# ruff: noqa: T201 - it speaks to a person
"""The desktop flow over the gateway: name the files by their hashes, submit, and send the bytes once the GPU is up.

    python ws_flow.py URL KEY TASK_TYPE CODE FIELD=FILE...
    python ws_flow.py https://gpu.example.com lamp_… heygem_submit talk-17 video=me.mp4 audio=speech.wav

Needs websockets and httpx2. It may be cut off anywhere and started again: CODE is the job, however often it is sent.
"""

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import httpx2
from websockets import ConnectionClosed, WebSocketException
from websockets.asyncio.client import connect

UNWELCOME = 4401  # the close code of a key that is not valid


class FlowFailed(Exception):
    """There is no result, and coming again would not help."""


async def main(url: str, key: str, task: str, code: str, *named: str) -> None:
    files = {field: Path(path) for field, _, path in (name.partition("=") for name in named)}
    given = {field: f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for field, path in files.items()}
    hashes = {given[field]: path for field, path in files.items()}
    submit = {"type": "gpu.job.submit", "task_type": task, "request_id": code, "payload": {"code": code, **given}}
    headers = {"Authorization": f"Bearer {key}"}
    last = ""
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
        # A new connection each time the old one breaks: the submit is the same job, `resume` gives what was missed.
        async for gateway in connect(url.replace("http", "ws", 1) + "/ws", additional_headers=headers):
            try:
                await gateway.send(json.dumps(submit))
                if last:
                    await gateway.send(json.dumps({"type": "resume", "payload": {"after": last}}))
                async for frame in gateway:
                    message = json.loads(frame)
                    last = message["payload"].get("id") or last
                    if await finished(message, code, hashes, http):
                        return
            except ConnectionClosed as closed:
                if closed.rcvd and closed.rcvd.code == UNWELCOME:
                    raise FlowFailed(closed.rcvd.reason) from closed
                await asyncio.sleep(1)


async def finished(message: dict[str, Any], code: str, hashes: dict[str, Path], http: httpx2.AsyncClient) -> bool:
    """Do what the message calls for; whether it was the last one about the job."""
    kind, payload = message["type"], message["payload"]
    if kind == "error" and message["request_id"] == code:
        raise FlowFailed(message["error_msg"])
    if kind == "ack" or (kind == "gpu.power.offline" and message["request_id"]):
        print(f"{'online' if kind == 'ack' else 'offline'}: {payload['message']}", flush=True)
    if kind in {"ack", "gpu.power.online"}:
        await upload(hashes, http)
    if kind == "gpu.job.progress" and payload["job_id"] == code:
        print(f"{payload['fraction']:.0%} {payload['stage'] or ''}", flush=True)
    if kind != "gpu.job.result" or payload["job_id"] != code:
        return False
    if message["error"]:
        raise FlowFailed(message["error_msg"])
    await download(message["result"], http)
    return True


async def upload(hashes: dict[str, Path], http: httpx2.AsyncClient) -> None:
    """Send what the server does not have; what it has is not sent again."""
    known = (await http.post("/v1/assets/check", json={"digests": list(hashes)})).raise_for_status().json()
    for missing in known["missing"]:
        path = hashes[missing if missing in hashes else f"sha256:{missing}"]
        reply = await http.put(f"/v1/assets/{missing.removeprefix('sha256:')}", content=path.read_bytes())
        reply.raise_for_status()
        print(f"uploaded {path.name}", flush=True)


async def download(job: dict[str, Any], http: httpx2.AsyncClient) -> None:
    """Every output, into the current folder."""
    for file in job["output"]["files"]:
        reply = (await http.get(file["url"])).raise_for_status()
        keep(Path(f"{job['id']}-{file['name']}"), reply.content)


def keep(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    print(f"result {path}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    try:
        asyncio.run(main(*sys.argv[1:]))
    except (FlowFailed, OSError, httpx2.HTTPError, WebSocketException) as error:
        sys.exit(str(error))
