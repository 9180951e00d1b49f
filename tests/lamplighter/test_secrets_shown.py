"""`lamplighter secrets` and the client's methods against a served edge."""

import json
import os
import sys
from pathlib import Path
from subprocess import CompletedProcess

import anyio
import anyio.to_thread
import pytest

from lamplighter import AsyncClient, Client, NotFound
from tests.support.served_edge import ServedEdge

VALUE = "hf_the-value-of-ann"


async def run(face: ServedEdge, *words: str, given: bytes = b"", key: str = "ann") -> CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "lamplighter", "--lang", "en", "secrets", *words]
    return await anyio.run_process([*argv, "--url", face.url, "--key", face.texts[key]], input=given, check=False)


async def stored(face: ServedEdge, key: str) -> str:
    """Return the value that a job would get."""
    row = await face.world.bus.secrets.get(key)
    assert row is not None
    return face.world.secret_key_file.keys.open(key, row.value)


async def test_a_secret_is_set_from_stdin_or_a_file_listed_and_deleted(face: ServedEdge, tmp_path: Path) -> None:
    made = await run(face, "set", "HF_TOKEN", given=f"{VALUE}\n".encode())
    assert (made.returncode, made.stdout.decode()) == (0, "secret HF_TOKEN is set\n"), made.stderr
    assert await stored(face, "owner.ann.HF_TOKEN") == VALUE
    file = tmp_path / "key.pem"
    file.write_text("line one\nline two\n")
    await run(face, "set", "PEM", "--installation", "--file", str(file), key="admin")
    assert await stored(face, "installation.PEM") == "line one\nline two"
    listed = await run(face, "list", "--json")
    assert [secret["name"] for secret in json.loads(listed.stdout)] == ["HF_TOKEN"]
    shown = (await run(face, "list", "--owner", "ann", key="admin")).stdout.decode()
    assert "HF_TOKEN" in shown
    assert VALUE not in shown + listed.stdout.decode() + made.stdout.decode()
    assert (await run(face, "delete", "HF_TOKEN")).stdout.decode() == "secret HF_TOKEN is deleted\n"
    gone = await run(face, "delete", "HF_TOKEN")
    assert gone.returncode != 0
    assert "there is no secret HF_TOKEN" in gone.stderr.decode()


async def test_the_key_is_replaced_with_a_hint_to_the_next_step(face: ServedEdge) -> None:
    await run(face, "set", "HF_TOKEN", given=f"{VALUE}\n".encode())
    done = await run(face, "rotate-key", key="admin")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().startswith("the key ")
    assert done.stdout.decode().endswith(" seals all secrets (1)\n")
    assert "lamplighter secrets rotate-key --finish" in done.stderr.decode()
    assert await stored(face, "owner.ann.HF_TOKEN") == VALUE
    file = face.world.secret_key_file.path
    os.utime(file, (0, 0))
    finished = await run(face, "rotate-key", "--finish", key="admin")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == done.stdout
    assert "no old key is in that file any more" in finished.stderr.decode()
    assert await stored(face, "owner.ann.HF_TOKEN") == VALUE


@pytest.mark.parametrize(
    ("words", "given", "said"),
    [
        (("set", "HF_TOKEN"), b"short", "must be a text of 8 to 32768 bytes"),
        (("set", "HF_TOKEN"), b"\xff" * 20, "encode it, for example with base64"),
        (("set", "HF_TOKEN", "--file", "/no/such/file"), b"", "does not exist"),
        (("set", "1ST"), VALUE.encode(), "the name of a secret must have"),
        (("set", "HF_TOKEN", VALUE), b"", "extra argument"),
        (("set", "HF_TOKEN", "--installation"), VALUE.encode(), "need the scope admin"),
        (("rotate-key",), b"", "admin"),
        (("list", "--owner", "bob", "--installation"), b"", "exclude each other"),
    ],
)
async def test_what_cannot_be_done_is_refused_with_the_reason(
    face: ServedEdge, words: tuple[str, ...], given: bytes, said: str
) -> None:
    refused = await run(face, *words, given=given)
    assert refused.returncode != 0
    assert said in refused.stderr.decode()
    assert await face.world.bus.secrets.keys() == set()


async def test_both_clients_set_list_and_delete(face: ServedEdge) -> None:
    async with AsyncClient(face.url, face.texts["ann"]) as client:
        with Client(face.url, face.texts["ann"]) as other:
            made = await anyio.to_thread.run_sync(lambda: other.set_secret("HF_TOKEN", VALUE))
            assert await client.secrets() == [made]
            await client.delete_secret("HF_TOKEN")
            assert await anyio.to_thread.run_sync(other.secrets) == []
        with pytest.raises(NotFound):
            await client.delete_secret("HF_TOKEN")
