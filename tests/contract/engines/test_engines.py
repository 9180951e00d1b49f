"""Contract of every engine: the fake, the process engine and Docker."""

import asyncio
import itertools
import json
import os
import resource
import socket
import stat
from contextlib import aclosing
from pathlib import Path

import pytest

from runner.assets.container_folders import SecretFiles, open_secret_files
from runner.engines.port import (
    MIB,
    ContainerExit,
    ContainerSpec,
    FolderMount,
    FoundContainer,
    NoSuchContainer,
    StartFailed,
)
from schemas.container_protocol import LineParser, LogLine, ProgressLine
from tests.contract.engines.conftest import ENGINES
from tests.contract.engines.engine_rigs import DEADLINE_S, INSTALLATION, EngineRig, read_result, stream_text
from tests.contract.engines.programs import LONG
from tests.support.fake_engine import FakeEngine

pytestmark = pytest.mark.timeout(120)
REAL = ENGINES[1:]  # where there are threads to lose and programs of jobkit's


async def ended(host: EngineRig, handle: str) -> ContainerExit:
    async with asyncio.timeout(DEADLINE_S):
        return await host.engine.wait(handle)


async def test_a_job_runs_and_ends(host: EngineRig) -> None:
    spec = host.spec()
    handle = await host.start(spec, {"text": "灯", "steps": 3})
    chunks = await host.read(handle)
    exit_ = await ended(host, handle)
    assert (exit_.code, exit_.oom_killed) == (0, False)
    assert exit_.started_at is not None
    assert exit_.finished_at is not None
    assert exit_.started_at <= exit_.finished_at
    assert read_result(spec) == {"text": "灯"}
    assert b'"progress"' in stream_text(chunks)
    assert stream_text(chunks, "stderr").count(b"step ") == 3


ENDS = {
    "done": ({"behave": "exit", "exit": 0}, 0, False),
    "one": ({"behave": "exit", "exit": 1}, 1, False),
    "bad_input": ({"behave": "exit", "exit": 65}, 65, False),
    "highest": ({"behave": "exit", "exit": 255}, 255, False),
    "segv": ({"behave": "segv"}, 139, False),
    "oom": ({"behave": "oom"}, 137, True),
    "child_oom_hidden": ({"behave": "child_oom"}, 0, True),
    "child_oom_exit_9": ({"behave": "child_oom", "exit": 9}, 9, True),
}


@pytest.mark.parametrize("case", ENDS)
async def test_how_it_ended(host: EngineRig, case: str) -> None:
    given, code, oom_killed = ENDS[case]
    exit_ = await ended(host, await host.echo(**given))
    assert (exit_.code, exit_.oom_killed) == (code, oom_killed)


async def test_stop_asks_first(host: EngineRig) -> None:
    handle = await host.echo(behave="hang")
    await host.says(handle, b"progress")
    async with asyncio.timeout(DEADLINE_S):
        await host.engine.stop(handle, 30)
    assert (await ended(host, handle)).code == 143


async def test_stop_without_a_handler_takes_no_grace(host: EngineRig) -> None:
    handle = await host.start(host.spec("plain"))
    async with asyncio.timeout(20):
        await host.engine.stop(handle, 60)
    assert (await ended(host, handle)).code == 143


async def test_ignored_term_is_killed_after_the_grace(host: EngineRig) -> None:
    handle = await host.echo(behave="ignore_term")
    await host.says(handle, b"ignoring" if host.engine.name != "memory" else b"progress")
    async with asyncio.timeout(20):
        await host.engine.stop(handle, 1)
    exit_ = await ended(host, handle)
    assert (exit_.code, exit_.oom_killed) == (137, False)


async def test_stop_of_what_has_ended_or_never_was(host: EngineRig) -> None:
    handle = await host.echo(behave="exit", exit=3)
    await ended(host, handle)
    await host.engine.stop(handle, 5)
    await host.engine.stop("nothing", 5)
    assert (await ended(host, handle)).code == 3


async def test_a_missing_image_leaves_nothing(host: EngineRig) -> None:
    with pytest.raises(StartFailed) as failed:
        await host.start(host.spec("no-such-image", folder="/no/such/folder"))
    assert failed.value.code == "image_missing"
    assert await host.engine.find(INSTALLATION, host.host) == []


async def test_a_missing_command_does_not_start_or_exits_127(host: EngineRig) -> None:
    if isinstance(host.engine, FakeEngine):
        host.engine.next_start_failure = StartFailed("engine_error", "/no/such/program")
    ends, why = await fate(host, host.spec("missing"))
    assert ends == (127 if host.engine.name == "docker" else "engine_error")
    assert "/no/such/program" in why


async def fate(host: EngineRig, spec: ContainerSpec) -> tuple[int | str, str]:
    """Return exit code and stderr, or failure code and message of a start that left nothing."""
    try:
        handle = await host.start(spec)
    except StartFailed as failed:
        left = await host.engine.find(INSTALLATION, host.host)
        return failed.code, f"{failed.message}{left or ''}"
    return (await ended(host, handle)).code, stream_text(await host.read(handle), "stderr").decode()


async def test_a_flood_that_nobody_reads_blocks_nothing(host: EngineRig) -> None:
    handle = await host.echo(behave="flood")
    async with aclosing(host.engine.output(handle, None)) as chunks:
        first = await anext(chunks)
        assert (await ended(host, handle)).code == 0
        before, peak = rss_mb(), 0.0
        offset = first.cursor.offset
        async for chunk in chunks:
            assert chunk.cursor.offset == offset + len(chunk.data)
            offset = chunk.cursor.offset
            peak = max(peak, rss_mb())
    assert offset > 1_000_000
    assert peak - before < 50


def rss_mb() -> float:
    """Return the resident memory of this process, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


async def test_megabytes_without_a_newline(host: EngineRig) -> None:
    handle = await host.echo(behave="no_newline")
    chunks = await host.read(handle)
    assert (await ended(host, handle)).code == 0
    assert max(len(chunk.data) for chunk in chunks) < 1 << 20
    assert stream_text(chunks).count(b"x") == 8 << 20


async def test_chunks_end_where_lines_end(host: EngineRig) -> None:
    handle = await host.start(host.spec("long"))
    chunks = await host.read(handle)
    assert all(chunk.data.endswith(b"\n") for chunk in chunks[:-1])
    assert stream_text(chunks).splitlines() == [b"a" * LONG, b"b", b"c" * LONG]


async def test_output_is_taken_up_at_any_mark(host: EngineRig) -> None:
    handle = await host.echo(steps=40)
    chunks = await host.read(handle)
    offsets = [chunk.cursor.offset for chunk in chunks]
    assert offsets == list(itertools.accumulate(len(chunk.data) for chunk in chunks))
    for index in {0, len(chunks) // 2, len(chunks) - 1}:
        rest = await host.read(handle, chunks[index].cursor)
        for stream in ("stdout", "stderr"):
            assert stream_text(rest, stream) == stream_text(chunks[index + 1 :], stream)
        assert all(chunk.cursor.offset > offsets[index] for chunk in rest)
        assert not rest or rest[-1].cursor.offset == offsets[-1]


async def test_following_is_left_and_taken_up_while_it_runs(host: EngineRig) -> None:
    handle = await host.echo(steps=30, seconds=1.5)
    mark = await host.says(handle, b"step 10" if host.engine.name == "memory" else b"step 10 of")
    rest = stream_text(await host.read(handle, mark), "stderr")
    seen = stream_text(await host.read(handle), "stderr")
    assert seen.endswith(rest)
    assert seen.count(b"step ") == 30
    assert 0 < rest.count(b"\n") <= 20


async def test_what_it_says_parses(host: EngineRig) -> None:
    handle = await host.echo(steps=2)
    parsers = {stream: LineParser(stream) for stream in ("stdout", "stderr")}
    found = []
    async for chunk in host.engine.output(handle, None):
        found += parsers[chunk.stream].feed(chunk.data, chunk.cursor.offset - len(chunk.data))
    assert any(
        isinstance(parsed.message, ProgressLine) for parsed in found
    )  # the two streams keep no order between them
    assert sum(isinstance(parsed.message, LogLine) and parsed.message.text.startswith("step ") for parsed in found) == 2
    assert [parsed.end for parsed in found] == sorted({parsed.end for parsed in found})


async def test_found_in_every_state_by_its_own_host_only(host: EngineRig) -> None:
    running = await host.start(host.spec("plain", "running"))
    exited = await host.start(host.spec(job="exited"), {"behave": "exit"})
    await ended(host, exited)
    created = await host.create(host.spec("plain", "created"))
    found = await host.engine.find(INSTALLATION, host.host)
    wanted = {"running": running, "exited": exited, "created": created}
    assert sorted(found, key=lambda one: one.state) == [
        FoundContainer(wanted[state], host.spec(job=state).identity, state) for state in sorted(wanted)
    ]
    assert await host.engine.find(INSTALLATION, "another") == []
    assert await host.engine.find("another", host.host) == []


async def test_created_only_is_no_exit_0(host: EngineRig) -> None:
    handle = await host.create(host.spec("plain"))
    with pytest.raises(NoSuchContainer):
        await ended(host, handle)
    with pytest.raises(NoSuchContainer):
        await host.read(handle)
    await host.engine.stop(handle, 1)
    await host.engine.remove(handle)
    assert await host.engine.find(INSTALLATION, host.host) == []


async def test_remove_is_idempotent_and_ends_what_runs(host: EngineRig) -> None:
    handle = await host.start(host.spec("plain"))
    await host.engine.remove(handle)
    await host.engine.remove(handle)
    assert await host.engine.find(INSTALLATION, host.host) == []
    with pytest.raises(NoSuchContainer):
        await ended(host, handle)
    with pytest.raises(NoSuchContainer):
        await host.read(handle)


@pytest.mark.parametrize("host", REAL, indirect=True)
async def test_a_cancelled_start_leaves_nothing(host: EngineRig) -> None:
    spec = host.spec("plain")
    async with host.another() as engine:
        starting = asyncio.ensure_future(engine.start(spec))
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert await host.engine.find(INSTALLATION, host.host) == []


async def test_cancelled_waiting_and_following_end(host: EngineRig) -> None:
    handle = await host.start(host.spec("plain"))
    for waiting in (host.engine.wait(handle), host.read(handle)):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await waiting
    async with asyncio.timeout(DEADLINE_S):
        await host.engine.remove(handle)


@pytest.mark.parametrize("host", REAL, indirect=True)
async def test_a_warm_container_waits_for_its_job(host: EngineRig) -> None:
    spec = host.spec(env={"LAMPLIGHTER_WARM": "1"})
    handle = await host.start(spec, {"text": "warm"})
    await host.says(handle, b'"ready"')
    with socket.socket(socket.AF_UNIX) as start:
        start.connect(str(spec.job_dir / "start.sock"))
        start.sendall(b"start\n")
        assert (await ended(host, handle)).code == 0
    assert read_result(spec) == {"text": "warm"}


async def test_usage_counts_processes_and_their_memory(host: EngineRig) -> None:
    spec = host.spec("spawn")
    handle = await host.start(spec)
    cursor = await host.says(handle, b"one")
    before = await host.engine.usage(handle)
    (spec.job_dir / "in" / "go").touch()
    await host.says(handle, b"two", cursor)
    after = await host.engine.usage(handle)
    assert after.processes == before.processes + 1
    assert after.memory_bytes - before.memory_bytes >= 16 * MIB
    await host.engine.stop(handle, 0.0)
    with pytest.raises(NoSuchContainer):
        await host.engine.usage(handle)
    await host.engine.remove(handle)
    with pytest.raises(NoSuchContainer):
        await host.engine.usage(handle)


async def test_probe_says_what_it_is(host: EngineRig) -> None:
    info = await host.engine.probe()
    assert info.name == host.engine.name
    assert info.isolated == (info.name == "docker")
    assert info.isolated or info.notes


async def test_an_engine_says_how_it_gives_gpus_to_containers(host: EngineRig) -> None:
    """Check the GPU part of the port: modes, and the pid behind a handle, which only the process engine has."""
    engine = host.engine
    assert len(set(engine.injection_modes)) == len(engine.injection_modes)
    for injection in engine.injection_modes:
        engine.set_injection(injection)
    handle = await host.echo(steps=1)
    await ended(host, handle)
    pid = await engine.pid(handle)
    assert (pid is not None) == (engine.name == "process")
    assert await engine.pid("no-such-handle") is None


@pytest.mark.parametrize("host", ENGINES[2:], indirect=True)  # where the job is another user
async def test_a_job_reads_its_volumes_and_writes_to_its_caches(host: EngineRig) -> None:
    volume, cache = host.root / "trees" / "v", host.root / "kernels" / "data"
    for folder in (volume / "model", cache):
        folder.mkdir(parents=True)
        folder.parent.chmod(0o700)
    (volume / "model" / "a.bin").write_text("weights")
    (volume / "model" / "a.bin").chmod(0o444)
    for folder in (volume, volume / "model"):
        folder.chmod(0o755)
    volume.parent.chmod(0o700)
    mounts = (
        FolderMount(source=volume, target="/weights", variables=("LAMPLIGHTER_VOLUME_W", "MORE")),
        FolderMount(source=cache, target="/kernels", variables=("LAMPLIGHTER_CACHE_C",), is_writable=True),
    )
    handle = await host.start(host.spec("folders", mounts=mounts))
    chunks = await host.read(handle)
    assert stream_text(chunks, "stderr") == b""
    in_container = ["/weights", "/kernels"]
    assert json.loads(stream_text(chunks)) == {
        "same": True,
        "read": "weights",
        "added": False,
        "changed": False,
        "cached": True,
        "places": in_container if host.kind == "docker" else [str(volume), str(cache)],
    }
    assert [path.name for path in cache.iterdir()] == ["x"]
    assert volume.parent.stat().st_mode & 0o007 == cache.parent.stat().st_mode & 0o007 == 0


READS_SECRET = """
import json, os
folder = os.environ["LAMPLIGHTER_SECRETS"]
found = {name: open(os.path.join(folder, name)).read() for name in os.listdir(folder)}
mode = os.stat(os.path.join(folder, "HF_TOKEN")).st_mode & 0o777
owned = os.stat(os.path.join(folder, "HF_TOKEN")).st_uid == os.geteuid()
try:
    open(os.path.join(folder, "MORE"), "w").close()
    more = "written"
except OSError:
    more = "refused"
print(json.dumps([found, oct(mode), owned, more]), flush=True)
"""


@pytest.mark.parametrize("host", REAL, indirect=True)
@pytest.mark.parametrize("in_memory", [True, False])
async def test_a_private_folder_is_read_by_the_job_and_nobody_else(host: EngineRig, in_memory: bool) -> None:
    container = host.root / "j"
    files = open_secret_files(host.root, None, host.kind, is_memory_shared=False) if in_memory else SecretFiles()
    assert files.is_in_memory is in_memory
    files.write(container, {"HF_TOKEN": "hf_the-value"})
    spec = host.spec(
        image="echo",
        job_dir=container / "job",
        mounts=(files.mount(container),),
        entrypoint_override=("python3", "-c", READS_SECRET),
    )
    handle = await host.start(spec)
    printed = stream_text(await host.read(handle)).splitlines()[-1]
    is_own_user = host.kind == "process"
    assert json.loads(printed) == [{"HF_TOKEN": "hf_the-value"}, "0o400", True, "written" if is_own_user else "refused"]
    folder = files.folder(container)
    assert stat.S_IMODE(folder.stat().st_mode) & 0o027 == 0
    assert folder.stat().st_uid == os.geteuid()
    await host.engine.remove(handle)
    files.remove(container)
    files.close()
    assert folder.exists() is not in_memory
