"""The PHP example of docs/examples/php: submit a form, wait, download, and verify webhooks."""

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import httpx2
import pytest
from anyio import to_thread
from msgspec import Struct

from tests.clients.conftest import ClientWorld
from tests.support.installation import ROOT
from tests.support.reserved_ports import reserve_ports
from tests.support.wait import wait_for

EXAMPLE = ROOT / "docs" / "examples" / "php"


@pytest.fixture(scope="module", autouse=True)
def php() -> None:
    """Skip with the reason without PHP and its curl; fail under REQUIRE_PHP=1."""
    has_php = shutil.which("php") is not None
    modules = subprocess.run(["php", "-m"], capture_output=True, text=True, check=False).stdout if has_php else ""
    if "curl" in modules.split():
        return
    why = "php with curl is not here: install Debian's php-cli and php-curl"
    if os.environ.get("REQUIRE_PHP") == "1":
        pytest.fail(f"REQUIRE_PHP=1, but {why}", pytrace=False)
    pytest.skip(why)


class Receiver(Struct, frozen=True):
    """webhook.php behind PHP's own server. `states`: the file that it writes."""

    url: str
    states: Path


async def read_secret(world: ClientWorld) -> str:
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {world.key}"}, timeout=60) as client:
        return str((await client.get(f"{world.url}/v1/webhooks/secret")).json()["secret"])


@pytest.fixture
def receiver_port() -> Iterator[int]:
    with reserve_ports(1) as (port,):
        yield port


@pytest.fixture
async def receiver(world: ClientWorld, tmp_path: Path, receiver_port: int) -> AsyncIterator[Receiver]:
    states = tmp_path / "states.txt"
    environ = {**os.environ, "LAMPLIGHTER_WEBHOOK_SECRET": await read_secret(world), "LAMPLIGHTER_STATES": str(states)}
    argv = ["php", "-S", f"127.0.0.1:{receiver_port}", str(EXAMPLE / "webhook.php")]
    with (tmp_path / "php.log").open("wb") as log:
        server = await anyio.open_process(argv, env=environ, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{receiver_port}/"

        async def answers() -> bool:
            try:
                async with httpx2.AsyncClient(timeout=60) as client:
                    return (await client.get(url)).status_code == 401
            except httpx2.TransportError:
                return False

        try:
            await wait_for(answers)
            yield Receiver(url, states)
        finally:
            server.terminate()
            await server.wait()


def submit(url: str, key: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "LAMPLIGHTER_URL": url, "LAMPLIGHTER_KEY": key}
    argv = ["php", "-d", "error_reporting=-1", "-d", "display_errors=stderr", str(EXAMPLE / "submit.php"), *arguments]
    return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)


async def test_a_form_is_submitted_waited_for_and_its_webhooks_verified(
    world: ClientWorld, receiver: Receiver, tmp_path: Path
):
    file, result = tmp_path / "hello.txt", tmp_path / "copy.txt"
    file.write_text("hello\n")
    done = await to_thread.run_sync(submit, world.url, world.key, file, result, receiver.url)
    assert (done.returncode, done.stderr) == (0, "")
    job_id, text = done.stdout.strip().split(" ", 1)
    assert text == "from PHP"
    assert result.read_text() == "hello\n"

    async def is_told() -> bool:
        return receiver.states.exists() and "succeeded" in receiver.states.read_text()

    await wait_for(is_told)
    lines = [line.split() for line in receiver.states.read_text().splitlines()]
    assert {line[0] for line in lines} == {job_id}
    assert {"queued", "running", "succeeded"} <= {line[2] for line in lines}


async def test_a_webhook_with_another_signature_is_refused(receiver: Receiver):
    headers = {"webhook-id": "msg_1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
    async with httpx2.AsyncClient(timeout=60) as client:
        assert (await client.post(receiver.url, content=b"{}", headers=headers)).status_code == 401
    assert not receiver.states.exists()


async def test_a_refusal_is_told_with_its_code(world: ClientWorld, tmp_path: Path):
    file = tmp_path / "hello.txt"
    file.write_text("hello\n")
    done = await to_thread.run_sync(submit, world.url, "lamp_no_no", file, tmp_path / "copy.txt")
    assert done.returncode == 4
    assert done.stderr.startswith("unauthorized: ")
