"""`lamplighter webhooks` and the client's methods against a served edge."""

import json
import sys
from subprocess import CompletedProcess

import anyio
import anyio.to_thread
import pytest

from lamplighter import AsyncClient, Client, Rejected
from tests.support.served_edge import ServedEdge
from tests.support.webhook_receiver import run_receiver, statuses_in_order


async def run(face: ServedEdge, *words: str, language: str = "en") -> CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "lamplighter", "--lang", language, "webhooks", *words]
    return await anyio.run_process([*argv, "--url", face.url, "--key", face.texts["ann"]], check=False)


async def test_a_webhook_is_added_shown_tested_and_deleted(face: ServedEdge) -> None:
    assert (await run(face, "list")).stdout.decode().strip() == "no webhooks for all jobs"
    async with run_receiver(statuses_in_order(204, 500)) as receiver:
        added = await run(face, "add", receiver.url, "--endpoint", "echo", "--state", "failed", "--state", "expired")
        webhook = added.stdout.decode().strip()
        (listed,) = json.loads((await run(face, "list", "--json")).stdout)
        assert (listed["id"], listed["endpoints"], listed["states"]) == (webhook, ["echo"], ["failed", "expired"])
        assert webhook in (await run(face, "list")).stdout.decode()
        first, second = await run(face, "test", webhook), await run(face, "test", webhook, language="zh")
        assert (first.returncode, first.stdout.decode().strip()) == (0, "the receiver answered 204")
        assert (second.returncode, second.stdout.decode().strip()) == (1, "接收方返回 500")
        assert len(receiver.got) == 2
    silent = await run(face, "test", webhook, "--json")
    assert (silent.returncode, json.loads(silent.stdout)["delivered"]) == (1, False)
    assert (await run(face, "delete", webhook)).stdout.decode().strip() == f"webhook {webhook} deleted"
    gone = await run(face, "delete", webhook)
    assert gone.returncode != 0
    assert f"there is no webhook {webhook}" in gone.stderr.decode()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "http://127.0.0.1/hook"), "loopback"),
        (("add", "nonsense"), "$.url"),
        (("add", "https://files.test/", "--state", "running"), "--state"),
        (("add",), "URL"),
    ],
)
async def test_what_cannot_be_added_is_refused_with_the_reason(face: ServedEdge, words: tuple[str, ...], said: str):
    refused = await run(face, *words)
    assert refused.returncode != 0
    assert said in refused.stderr.decode()
    assert (await face.ann.get("/v1/webhooks")).json() == {"webhooks": []}


async def test_both_clients_add_and_delete(face: ServedEdge) -> None:
    async with run_receiver() as receiver, AsyncClient(face.url, face.texts["ann"]) as client:
        with Client(face.url, face.texts["ann"]) as other:
            made = await anyio.to_thread.run_sync(lambda: other.add_webhook(receiver.url, states=["failed"]))
            assert await client.webhooks() == [made]
            assert (await client.test_webhook(made["id"]))["delivered"]
            await client.delete_webhook(made["id"])
            with pytest.raises(Rejected, match="there is no webhook"):
                await anyio.to_thread.run_sync(other.delete_webhook, made["id"])
        assert await client.webhooks() == []
