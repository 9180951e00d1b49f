"""Contract of the Docker engine alone: isolation, GPU requests, a daemon that goes away."""

import asyncio
import json
import threading
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.port import MIB, EngineUnavailable, GpuInjection, StartFailed
from tests.contract.engines.conftest import ENGINES
from tests.contract.engines.engine_rigs import DEADLINE_S, INSTALLATION, EngineRig, stream_text
from tests.contract.engines.socket_gate import LEAKY, open_gate

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]
DOCKER = pytest.mark.parametrize("host", ENGINES[4:], indirect=True)


@DOCKER
async def test_a_container_may_do_nothing_it_does_not_need(host: EngineRig) -> None:
    spec = host.spec("look")
    handle = await host.start(spec, {}, **{"a.txt": b"given"})
    chunks = await host.read(handle)
    assert stream_text(chunks, "stderr") == b""
    assert json.loads(stream_text(chunks)) == {
        "uid": 65534,
        "caps": 0,
        "no_new_privs": "1",
        "seccomp": "2",
        "interfaces": ["lo"],
        "net": False,
        "root": False,
        "in": False,
        "input": False,
        "read": "given",
        "job": False,
        "out": True,
        "scratch": True,
        "tmp": True,
        "swaps": [],
        "exec_tmp": False,
        "exec_cache": True,
        "core": 0,
        "oom": 500,
        "shm": 64,
        "pid1": "docker-init",
        "gpu": "void",
    }


@DOCKER
async def test_a_warm_container_cannot_swap_its_folders(host: EngineRig) -> None:
    spec = host.spec("look", env={"LAMPLIGHTER_WARM": "1"})
    handle = await host.start(spec, {}, **{"a.txt": b"given"})
    seen = json.loads(stream_text(await host.read(handle)))
    assert (seen["swaps"], seen["in"], seen["input"]) == ([], False, False)


@DOCKER
async def test_usage_counts_what_lies_in_tmp_and_in_shared_memory(host: EngineRig) -> None:
    code = (
        "import os, time\nprint('one', flush=True)\n"
        "while not os.path.exists('/job/in/go'):\n    time.sleep(0.02)\n"
        "for path in ('/tmp/left', '/dev/shm/left'):\n    open(path, 'wb').write(b'x' * (1 << 20))\n"
        "print('two', flush=True)\ntime.sleep(600)\n"
    )
    spec = replace(host.spec("plain"), entrypoint_override=("python3", "-c", code))
    handle = await host.start(spec)
    cursor = await host.says(handle, b"one")
    before = await host.engine.usage(handle)
    (spec.job_dir / "in" / "go").touch()
    await host.says(handle, b"two", cursor)
    after = await host.engine.usage(handle)
    assert after.scratch_files - before.scratch_files == 2
    assert after.scratch_bytes - before.scratch_bytes == 2 * MIB


@DOCKER
@pytest.mark.parametrize("injection", ["cdi", "device_request", "runtime"])
async def test_a_gpu_that_cannot_be_given(host: EngineRig, docker_url: str, injection: GpuInjection) -> None:
    async with DockerEngine(DockerSettings(base_url=docker_url, injection=injection)) as engine:
        spec = host.spec("plain", gpus=("GPU-00000000-0000-0000-0000-000000000000",))
        with pytest.raises(StartFailed) as failed:
            await engine.start(spec)
        assert failed.value.code == "gpu_unsupported"
        assert await engine.find(INSTALLATION, host.host) == []


@DOCKER
async def test_cpu_limits_above_the_hosts_are_taken(host: EngineRig) -> None:
    spec = host.spec("plain")
    handle = await host.start(msgspec.structs.replace(spec, limits=msgspec.structs.replace(spec.limits, cpus=4096.0)))
    [found] = await host.engine.find(INSTALLATION, host.host)
    assert (found.handle, found.state) == (handle, "running")


@DOCKER
@LEAKY
@pytest.mark.usefixtures("swept")
async def test_a_restarting_daemon_costs_no_line(host: EngineRig, docker_url: str, tmp_path: Path) -> None:
    async with open_gate(tmp_path, docker_url) as way, DockerEngine(DockerSettings(base_url=way.url)) as engine:
        handle = await host.echo(steps=20, seconds=4)
        waiting = asyncio.ensure_future(engine.wait(handle))
        chunks = []
        async with asyncio.timeout(DEADLINE_S), aclosing(engine.output(handle, None)) as output:
            async for chunk in output:
                chunks.append(chunk)
                if b"step 5 " in chunk.data:
                    await way.shut()
                    asyncio.get_running_loop().call_later(0.5, way.open)
        assert (await waiting).code == 0
    lines = [line for line in stream_text(chunks, "stderr").splitlines() if line.startswith(b"step ")]
    assert lines == [b"step %d of 20" % step for step in range(1, 21)]
    offsets = [chunk.cursor.offset for chunk in chunks]
    assert offsets == sorted(set(offsets))


@DOCKER
@LEAKY
@pytest.mark.usefixtures("swept")
async def test_a_daemon_that_stays_away_is_gone(host: EngineRig, docker_url: str, tmp_path: Path) -> None:
    settings = DockerSettings(base_url=f"unix://{tmp_path}/gate.sock", reconnect_s=0.3)
    async with open_gate(tmp_path, docker_url) as way, DockerEngine(settings) as engine:
        handle = await host.start(host.spec("plain"))
        waiting = asyncio.ensure_future(engine.wait(handle))
        following = asyncio.ensure_future(anext(engine.output(handle, None)))
        assert await engine.find(INSTALLATION, host.host)
        await way.shut()
        async with asyncio.timeout(DEADLINE_S):
            for call in (waiting, following, engine.probe(), engine.find("x", "y"), engine.stop(handle, 0)):
                with pytest.raises(EngineUnavailable):
                    await call
            with pytest.raises(EngineUnavailable):
                await engine.start(host.spec("plain"))


async def test_no_daemon_at_all(tmp_path: Path) -> None:
    async with DockerEngine(DockerSettings(base_url=f"unix://{tmp_path}/no.sock")) as engine:
        with pytest.raises(EngineUnavailable, match="is the daemon running"):
            await engine.probe()


@DOCKER
async def test_readers_that_leave_give_their_threads_back(host: EngineRig, docker_url: str) -> None:
    """Follow with five readers; four threads in all would not be enough if they kept theirs."""
    async with DockerEngine(DockerSettings(base_url=docker_url, streams=1)) as engine:
        handle = await host.start(host.spec("plain"))
        for _ in range(2 * 10):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await engine.wait(handle)
        assert await engine.find(INSTALLATION, host.host)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("docker")][10:]


@DOCKER
async def test_an_input_made_private_by_an_umask_is_readable(host: EngineRig) -> None:
    spec = host.spec()
    spec.job_dir.mkdir(mode=0o700)
    handle = await host.start(spec, {"text": "x"})
    assert (await host.engine.wait(handle)).code == 0
