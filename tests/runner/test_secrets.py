"""Secrets on a host, over the fakes: which container has which files, for how long, and what is masked."""

import asyncio
import base64
import json
import re
import stat
import urllib.parse
from pathlib import Path

import pytest
from msgspec.structs import replace

from runner.assets.client import asset_client
from runner.assets.container_folders import (
    SECRETS_ENV,
    SecretFiles,
    SecretsFolderUnusable,
    is_in_memory,
    open_secret_files,
)
from runner.assets.port import EdgeUnavailable, SecretsUnavailable
from runner.engines.port import WARM_ENV
from runner.execution.output_filters import SecretRedactor
from schemas.container_protocol import OutputStream
from schemas.endpoint import Reuse
from schemas.events import Adopted
from schemas.job import Status
from tests.runner.warm_programs import reused_program, warm_endpoint, warm_program
from tests.support.fake_engine import FakeContainer
from tests.support.runner_environment import RunnerEnvironment, run_until_stopped, write_outputs
from tests.support.wait import wait_for

VALUE = "hf_the-value-of-ann"
MASKED = "*" * len(VALUE)


def folder_of(box: FakeContainer) -> Path:
    """Return the folder of the secrets that the container has."""
    (mount,) = (mount for mount in box.spec.mounts if SECRETS_ENV in mount.variables)
    assert (mount.target, mount.is_writable, mount.is_private) == ("/run/secrets", False, True)
    return mount.source


def read_all(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path) -> RunnerEnvironment:
    made = RunnerEnvironment(tmp_path / "hosts")
    made.folder.mkdir()
    is_on_disk = getattr(request, "param", "") == "on disk"
    made.secrets = SecretFiles(None if is_on_disk else tmp_path / "memory")
    (tmp_path / "memory").mkdir()
    made.assets.secrets = {"HF_TOKEN": VALUE, "NOT_ASKED_FOR": "another value"}
    return made


def offer(world: RunnerEnvironment, *, warm: bool = False, reuse: Reuse | None = None) -> None:
    endpoint = warm_endpoint("kept", world.folder)
    config = replace(endpoint.config, reuse=reuse, warm=warm, secrets=("HF_TOKEN",))
    world.kinds = {"kept": replace(endpoint, config=config)}


@pytest.mark.parametrize("world", ["in memory", "on disk"], indirect=True)
@pytest.mark.parametrize("warm", [False, True])
async def test_a_container_has_the_secrets_of_its_job_as_private_files(world: RunnerEnvironment, warm: bool) -> None:
    loaded: dict[str, dict[str, str]] = {}
    worked: dict[str, dict[str, str]] = {}

    async def loads(box: FakeContainer) -> None:
        loaded[box.handle] = read_all(folder_of(box))

    async def work(box: FakeContainer) -> int:
        folder = folder_of(box)
        worked[box.handle] = read_all(folder)
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "HF_TOKEN")]
        assert modes[1] & 0o077 == 0, modes
        assert folder == world.secrets.folder(box.spec.job_dir.parent)
        assert not folder.is_relative_to(box.spec.job_dir)
        (box.spec.job_dir / "out" / "output.json").write_text("{}")
        return 0

    world.programs = {"kept": warm_program(work, loads if warm else None)}
    offer(world, warm=warm)
    async with world.run_runner() as runner:
        if warm:
            await world.wait_for_warm("kept")
        ended = await world.wait_until_ended(await world.submit("kept", "j1"))
        await runner.drained()
    assert ended.status is Status.SUCCEEDED, ended.error
    ((handle, seen),) = worked.items()
    assert seen == {"HF_TOKEN": VALUE}
    assert loaded.get(handle) == ({} if warm else None)
    await world.wait_until_clean()
    assert not list(world.folder.parent.rglob("HF_TOKEN"))


async def test_a_reused_container_has_the_secrets_of_one_job_after_the_other(world: RunnerEnvironment) -> None:
    seen: list[dict[str, str]] = []
    folders: list[Path] = []

    async def work(box: FakeContainer, folder: Path) -> int:
        folders.append(folder_of(box))
        seen.append(read_all(folders[0]))
        (folder / "out" / "output.json").write_text("{}")
        return 0

    world.programs = {"kept": reused_program(work)}
    offer(world, warm=True, reuse=Reuse())
    async with world.run_runner() as runner:
        await world.wait_until_ended(await world.submit("kept", "j1"))

        async def is_empty() -> bool:
            return not read_all(folders[0])

        await wait_for(is_empty)
        world.assets.secrets = {"HF_TOKEN": "the next value"}
        await world.wait_until_ended(await world.submit("kept", "j2"))
        await runner.drained()
    assert seen == [{"HF_TOKEN": VALUE}, {"HF_TOKEN": "the next value"}]
    assert len(set(folders)) == 1


async def test_a_job_whose_secret_was_deleted_fails_and_is_not_tried_again(world: RunnerEnvironment) -> None:
    world.programs = {"kept": warm_program(never)}
    offer(world)
    world.assets.secrets_missing = True
    async with world.run_runner() as runner:
        ended = await world.wait_until_ended(await world.submit("kept", "j1"))
        await runner.drained()
    assert (ended.status, ended.attempt) == (Status.FAILED, 1)
    assert ended.error is not None
    assert (ended.error.code, ended.error.retryable) == ("secret_missing", True)
    assert "lamplighter secrets set NAME" in ended.error.message


async def test_secrets_of_a_container_that_is_gone_are_removed_at_the_next_start(world: RunnerEnvironment) -> None:
    world.programs = {"kept": run_until_stopped}
    offer(world)
    _, box = await world.kill_runner_during_job("kept")
    folder = folder_of(box)
    assert read_all(folder) == {"HF_TOKEN": VALUE}, "the runner was killed"
    world.boxes.clear()
    async with world.run_runner("i2") as second:
        assert not folder.exists()
        await second.drained()


async def test_secrets_without_a_folder_of_a_container_are_removed_at_the_next_start(world: RunnerEnvironment) -> None:
    left = world.secrets.folder(world.folder / "gpu-1" / "ann.j1.1.1")
    left.mkdir(parents=True)
    (left / "HF_TOKEN").write_text(VALUE)  # as a crash between the two removals leaves it
    async with world.run_runner() as runner:
        assert not left.exists()
        await runner.drained()


async def test_a_reused_container_whose_folder_of_secrets_vanished_gives_its_job_to_a_new_one(
    world: RunnerEnvironment,
) -> None:
    seen: list[dict[str, str]] = []
    folders: list[Path] = []

    async def work(box: FakeContainer, folder: Path) -> int:
        folders.append(folder_of(box))
        seen.append(read_all(folder_of(box)))
        (folder / "out" / "output.json").write_text("{}")
        return 0

    reused = reused_program(work)

    async def program(box: FakeContainer) -> int:
        return await (reused(box) if WARM_ENV in box.spec.env else work(box, box.spec.job_dir))

    world.programs = {"kept": program}
    offer(world, warm=True, reuse=Reuse())
    async with world.run_runner() as runner:
        await world.wait_until_ended(await world.submit("kept", "j1"))
        (folder,) = folders

        async def is_empty() -> bool:
            return not read_all(folder)

        await wait_for(is_empty)
        folder.rmdir()
        ended = await world.wait_until_ended(await world.submit("kept", "j2"))
        await runner.drained()
    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1), ended.error
    assert seen == [{"HF_TOKEN": VALUE}] * 2


def test_the_folder_of_secrets_is_in_memory_and_of_this_user(tmp_path: Path) -> None:
    files = open_secret_files(tmp_path, None, "process", is_memory_shared=False)
    folder = files.mount(tmp_path / "ann.j1.1.1").source
    try:
        assert files.is_in_memory
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
        again = open_secret_files(tmp_path, None, "process", is_memory_shared=False)
        assert again.folder(tmp_path / "ann.j1.1.1") == folder
        assert not open_secret_files(tmp_path, None, "process", is_memory_shared=True).is_in_memory
    finally:
        files.remove(tmp_path / "ann.j1.1.1")
        files.close()
    assert not folder.parent.exists()


def test_a_folder_of_secrets_that_somebody_else_made_is_refused(tmp_path: Path) -> None:
    files = open_secret_files(tmp_path, tmp_path / "named", "process", is_memory_shared=False)
    files.folder(tmp_path / "x").parent.symlink_to(tmp_path)
    with pytest.raises(SecretsFolderUnusable, match="belongs to another user"):
        files.write(tmp_path / "x", {"HF_TOKEN": VALUE})
    with pytest.raises(SecretsFolderUnusable, match="belongs to another user"):
        open_secret_files(tmp_path, tmp_path / "named", "process", is_memory_shared=False)
    (tmp_path / "file").touch()
    with pytest.raises(SecretsFolderUnusable, match=r"set secrets_folder to another"):
        open_secret_files(tmp_path, tmp_path / "file", "process", is_memory_shared=False)


def test_the_last_mount_of_a_folder_says_whether_it_is_in_memory(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"25 1 0:1 / {tmp_path} rw - tmpfs x rw\n26 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n")
    assert is_in_memory(tmp_path / "below", mounts)
    assert not is_in_memory(tmp_path.parent, mounts)
    mounts.write_text(f"{mounts.read_text()}27 25 8:2 / {tmp_path} rw - ext4 /dev/sdb1 rw\n")
    assert not is_in_memory(tmp_path, mounts)
    assert not is_in_memory(tmp_path, tmp_path / "missing")


async def never(box: FakeContainer) -> int:
    raise AssertionError("it must not start")


async def test_a_job_waits_until_the_edge_gives_all_that_its_endpoint_names(world: RunnerEnvironment) -> None:
    world.programs = {"kept": warm_program(succeed)}
    offer(world)
    world.assets.secrets = {}
    async with world.run_runner() as runner:
        key = await world.submit("kept", "j1")
        await world.assets.asked.wait()
        world.assets.secrets = {"HF_TOKEN": VALUE}
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
        await runner.drained()


async def test_an_edge_that_dies_while_it_gives_secrets_delays_the_job_and_costs_no_attempt(
    world: RunnerEnvironment,
) -> None:
    world.programs = {"kept": warm_program(succeed)}
    offer(world)
    world.assets.away = True
    async with world.run_runner() as runner:
        key = await world.submit("kept", "j1")
        await world.assets.asked.wait()
        world.assets.away = False
        ended = await world.wait_until_ended(key)
        await runner.drained()
    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1), ended.error
    assert await world.event_types(key) == ["Submitted", "Started", "Succeeded"]


@pytest.mark.parametrize("sent", [b"", b'HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n{"secrets":{"HF_TOKEN":"hf_'])
async def test_an_answer_with_secrets_that_is_cut_is_asked_for_again(sent: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()[:2]
        async with asset_client(f"http://{host}:{port}", "key") as client:
            with pytest.raises(EdgeUnavailable) as refused:
                await client.fetch_secrets("ann", "j1")
    assert not isinstance(refused.value, SecretsUnavailable), "the edge is away for every job"
    assert "hf_" not in str(refused.value)


async def test_a_job_that_waits_for_its_secrets_can_be_cancelled(world: RunnerEnvironment) -> None:
    world.programs = {"kept": warm_program(never)}
    offer(world)
    world.assets.secrets = {}
    async with world.run_runner() as runner:
        key = await world.submit("kept", "j1")
        await world.assets.asked.wait()
        await world.cancel(key)
        assert (await world.wait_until_ended(key)).status is Status.CANCELLED
        await runner.drained()
    await world.wait_until_clean()


async def succeed(box: FakeContainer) -> int:
    (box.spec.job_dir / "out" / "output.json").write_text("{}")
    return 0


async def test_nothing_that_is_kept_of_a_job_has_its_secret(world: RunnerEnvironment) -> None:
    async def leaks(box: FakeContainer) -> int:
        box.write(json.dumps({"type": "progress", "fraction": 0.5, "stage": f"with {VALUE}"}).encode() + b"\n")
        box.write(json.dumps({"type": "metric", "name": VALUE, "value": 1}).encode() + b"\n")
        box.write(f"the token is {VALUE}!\n".encode())
        box.write(f"{VALUE}\n".encode(), "stderr")
        box.write(b'{"type":"error","code":"internal","message":"\\u0068f_the-value-of-ann is refused"}\n')
        return 65

    world.programs = {"kept": leaks}
    offer(world)
    async with world.run_runner() as runner:
        key = await world.submit("kept", "j1")
        ended = await world.wait_until_ended(key)
        told = await world.log_text(key)
        messages = str(await world.edge.feed.messages(key))
        await runner.drained()
    assert ended.error is not None
    assert ended.error.message == f"{MASKED} is refused"
    assert ended.error.log_tail == (MASKED,)
    assert f"the token is {MASKED}!\n" in told
    kept = [*(data.decode() for data in world.assets.held.values()), messages, told, str(ended)]
    assert MASKED in messages
    assert not [text for text in kept if VALUE in text]


async def test_the_next_runner_process_masks_too(world: RunnerEnvironment) -> None:
    world.programs = {"kept": run_until_stopped}
    offer(world)
    key, box = await world.kill_runner_during_job("kept")
    async with world.run_runner("i2") as second:
        await world.wait_for_event(key, Adopted)
        box.write(f"late {VALUE}\n".encode())
        write_outputs(box, data={"token": VALUE})
        box.finish(0)
        ended = await world.wait_until_ended(key)
        told = await world.log_text(key)
        await second.drained()
    assert ended.status is Status.SUCCEEDED, ended.error
    assert told == f"late {MASKED}\n"
    assert ended.output is not None
    assert ended.output.data == {"token": MASKED}


PEM = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nqhkiG9w0BAQEF==\n-----END KEY-----"


def redact_in_pieces(redactor: SecretRedactor, pieces: list[str], stream: OutputStream = "stdout") -> str:
    return b"".join(redactor.redact(stream, piece.encode()) for piece in pieces).decode()


@pytest.mark.parametrize(
    ("values", "printed", "masked"),
    [
        ([VALUE], f"a {VALUE} b {VALUE}\n", f"a {MASKED} b {MASKED}\n"),
        ([PEM], f"{PEM}\n", "*" * len(PEM) + "\n"),
        ([PEM], "x MIIEvQIBADANBg y\n", "x ************** y\n"),
        (['quo"ted\\value'], json.dumps('quo"ted\\value') + "\n", '"' + "*" * 15 + '"\n'),
        (["灯灯灯"], json.dumps("灯灯灯") + " 灯灯灯\n", '"' + "*" * 18 + '" ' + "*" * 9 + "\n"),
        (["a/b/c/d/e"], '"a\\/b\\/c\\/d\\/e"\n', '"' + "*" * 13 + '"\n'),
        (["abcdefgh", "fghijklm"], "abcdefghijklm\n", "*" * 13 + "\n"),
        ([], "nothing to hide\n", "nothing to hide\n"),
    ],
)
def test_a_value_is_masked_in_every_form_and_at_the_same_length(values: list[str], printed: str, masked: str) -> None:
    assert redact_in_pieces(SecretRedactor(values), [printed]) == masked
    assert len(masked.encode()) == len(printed.encode())


SIGNS = "p/ss+w?rd&100%=<灯>"


def encodings(value: str) -> dict[str, str]:
    """Return the value as programs encode it for URLs and headers."""
    data = value.encode()
    return {
        "url": urllib.parse.quote(value),
        "url, all": urllib.parse.quote(value, safe=""),
        "url, lower": re.sub("%..", lambda escape: escape[0].lower(), urllib.parse.quote(value, safe="")),
        "form": urllib.parse.urlencode({"": value})[1:],
        "hex": data.hex(),
        "base64": base64.b64encode(data).decode(),
        "base64, url": base64.urlsafe_b64encode(data).decode(),
        **{f"basic, user of {size}": base64.b64encode(b"u" * size + b":" + data).decode() for size in range(3)},
        **{f"in the middle {size}": base64.b64encode(b"u" * size + data + b"\n").decode() for size in range(3)},
    }


@pytest.mark.parametrize("value", [VALUE, SIGNS, "12345678"])
@pytest.mark.parametrize("name", encodings("x"))
def test_a_value_is_masked_in_the_usual_encodings(value: str, name: str) -> None:
    encoded = encodings(value)[name]
    redactor = SecretRedactor([value])
    masked = redact_in_pieces(redactor, [f"Authorization: {encoded}, and more\n"])
    assert len(masked) == len(f"Authorization: {encoded}, and more\n")
    shown = masked.removeprefix("Authorization: ").removesuffix(", and more\n")
    assert shown.count("*") >= len(encoded) - 8, "at most the characters that neighbours share with it are shown"
    assert redactor.redact_value({"header": encoded}) == {"header": shown}
    cut = len(encoded) // 2
    in_two = redact_in_pieces(SecretRedactor([value]), [encoded[:cut], f"{encoded[cut:]}\n"])
    assert in_two.count("*") >= shown.count("*")


def test_texts_without_the_value_stay_as_they_are() -> None:
    printed = "".join(f"{text}\n" for text in encodings("another value, as long as that").values())
    assert redact_in_pieces(SecretRedactor([VALUE, SIGNS]), [printed]) == printed


@pytest.mark.parametrize("cut", range(1, len(VALUE)))
def test_a_value_is_masked_across_the_cut_of_a_long_line(cut: int) -> None:
    line = f"long {VALUE} line"
    at = len("long ") + cut
    masked = redact_in_pieces(SecretRedactor([VALUE]), [line[:at], line[at:], "\n"])
    assert masked == f"long {MASKED} line\n"


def test_the_two_streams_are_masked_apart() -> None:
    redactor = SecretRedactor([VALUE])
    assert redact_in_pieces(redactor, ["hf_the-"]) == "*" * 7
    assert redact_in_pieces(redactor, ["value-of-ann\n"], "stderr") == "value-of-ann\n"
    assert redact_in_pieces(redactor, ["value-of-ann\n"]) == "*" * 12 + "\n"


def test_masked_values_in_a_result() -> None:
    redactor = SecretRedactor([VALUE])
    given = {"token": VALUE, "list": [f"x{VALUE}", 1, None], VALUE: {"a": 1.5}}
    assert redactor.redact_value(given) == {"token": MASKED, "list": [f"x{MASKED}", 1, None], MASKED: {"a": 1.5}}
