"""The volumes of a host's endpoints: filled ahead of need, followed, told apart when they fail, shared, removed."""

import re
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from runner.assets.volume_source import FillFailed, FillFailure
from runner.endpoints import LocalEndpoint
from schemas.endpoint import Endpoint, Resources
from schemas.endpoint_parts import Volume, VolumeFile
from schemas.host import VolumeStatus
from schemas.job import Status
from tests.support.asset_server import sha256_of
from tests.support.fake_engine import FakeContainer
from tests.support.runner_environment import RunnerEnvironment, write_outputs
from tests.support.wait import wait_for
from tests.support.weights_server import FakeVolumeSource

UNET, VAE = b"unet" * 1000, b"vae!" * 1000
FILES = (
    VolumeFile(path="model/unet.pth", url="https://models.test/unet?key=private", sha256=sha256_of(UNET)),
    VolumeFile(path="vae.pth", url="https://models.test/vae", sha256=sha256_of(VAE)),
)
WEIGHTS = Volume(name="weights", path="/weights", files=FILES)


async def read_weights(box: FakeContainer) -> int:
    """Run a job that answers what it finds in its first volume."""
    box.write(b'{"type":"progress","fraction":1}\n')
    folder = box.spec.mounts[0].source
    write_outputs(box, {}, {"files": sorted(path.name for path in folder.rglob("*") if path.is_file())})
    return 0


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    folder = tmp_path / "hosts"
    folder.mkdir()
    made = RunnerEnvironment(folder)
    made.programs["well"] = read_weights
    made.weights = FakeVolumeSource(UNET, VAE)
    offer(made, well=WEIGHTS)
    return made


def offer(world: RunnerEnvironment, **volumes: Volume) -> None:
    """Let the next runner offer these endpoints, each with its volume."""
    world.kinds = {
        name: LocalEndpoint(
            Endpoint(name=name, image="well", volumes=(volume,), resources=Resources(disk_mb=0, memory_mb=16)),
            world.folder,
        )
        for name, volume in volumes.items()
    }


async def status_when(
    world: RunnerEnvironment, condition: Callable[[VolumeStatus], bool], host: str = "gpu-1"
) -> VolumeStatus:
    """Return the heartbeat's only volume once it is as wanted."""

    async def told() -> VolumeStatus | None:
        row = await world.edge.heartbeats.get(host)
        volumes = row.value.volumes if row else ()
        return volumes[0] if len(volumes) == 1 and condition(volumes[0]) else None

    return await wait_for(told)


async def reason_of(world: RunnerEnvironment) -> str | None:
    row = await world.edge.heartbeats.get("gpu-1")
    return row.value.unschedulable.get("well") if row else None


async def test_a_volume_is_filled_before_a_job_needs_it_and_the_job_waits_for_it(world: RunnerEnvironment) -> None:
    world.weights.hold = anyio.Event()
    async with world.run_runner():
        filling = await status_when(world, lambda volume: volume.done_bytes == len(UNET) // 2)
        assert (filling.state, filling.names, filling.endpoints) == ("filling", ("weights",), ("well",))
        assert (filling.volume, filling.total_bytes, filling.percent) == (WEIGHTS.digest, len(UNET + VAE), 25)
        assert await reason_of(world) == "volume_filling"
        key = await world.submit("well")
        world.weights.hold.set()
        done = await world.wait_until_ended(key)
        assert done.output is not None
        assert (done.status, done.output.data) == (Status.SUCCEEDED, {"files": ["unet.pth", "vae.pth"]})
        ready = await status_when(world, lambda volume: volume.state == "ready")
        assert (ready.done_bytes, ready.percent, ready.why) == (None, None, None)
    assert await world.event_types(key) == ["Submitted", "Started", "Succeeded"]
    assert world.weights.downloads == ["model/unet.pth", "vae.pth"]


async def test_the_container_gets_it_read_only_with_its_variables(world: RunnerEnvironment) -> None:
    offer(world, waits=replace(WEIGHTS, env=("HF_HOME",)))
    world.programs["well"] = world.programs["waits"]
    async with world.run_runner():
        await world.submit("waits")
        (mount,) = (await world.wait_for_container()).spec.mounts
        assert (mount.target, mount.is_writable) == ("/weights", False)
        assert mount.variables == ("LAMPLIGHTER_VOLUME_WEIGHTS", "HF_HOME")
        assert (mount.source / "model" / "unet.pth").read_bytes() == UNET


FAILURES = {
    FillFailure.NOT_FOUND: r"^models.test has no model/unet.pth of the volume weights \(as told\): correct its `url`",
    FillFailure.REFUSED: r"^models.test refuses model/unet.pth .*: check the login",
    FillFailure.WRONG_DIGEST: r"^models.test sent another file .*: correct its `sha256` in endpoint.toml",
    FillFailure.DISK_FULL: r"has no room for model/unet.pth .*: free some space on that host, or set",
    FillFailure.QUOTA: r"does not fit into \[volumes\] max_gb .*: raise it",
    FillFailure.UNREACHABLE: r"^models.test cannot be reached from the host .*: check the address",
    FillFailure.INTERRUPTED: r"^the connection to models.test broke .*: nothing, it goes on from there",
    FillFailure.FAILED: r"cannot be had from models.test .*: look at that server",
}


@pytest.mark.parametrize("code", list(FillFailure))
async def test_a_failed_fill_says_why_and_what_to_do_and_is_made_again(
    world: RunnerEnvironment, code: FillFailure
) -> None:
    world.weights.fault = FillFailed(code, "as told")
    async with world.run_runner():
        key = await world.submit("well")
        told = await status_when(world, lambda volume: volume.why is not None)
        assert told.state in {"missing", "filling"}
        assert re.search(FAILURES[code], told.why or ""), told.why
        assert "\n" not in (told.why or "")
        assert "private" not in (told.why or "")

        async def tried_again() -> bool:
            return len(world.weights.downloads) >= 3

        await wait_for(tried_again)
        world.weights.fault = None
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
        assert (await status_when(world, lambda volume: volume.state == "ready")).why is None


async def test_a_volume_that_is_larger_than_the_limit_is_told_with_the_numbers(world: RunnerEnvironment) -> None:
    world.volumes_limit_bytes = len(UNET) * 3 // 2  # the first file alone would fit
    async with world.run_runner():
        told = await status_when(world, lambda volume: volume.failure == FillFailure.QUOTA)
    assert told.why == (
        "the volume weights does not fit into [volumes] max_gb beside what that host needs (the 2 files to come have "
        "7.5e-06 GiB, with them the volumes need 7.5e-06 GiB, and max_gb allows 5.6e-06 GiB): raise it, or offer fewer "
        "endpoints there"
    )
    assert world.weights.downloads == []


async def test_two_endpoints_share_a_volume_under_any_name(world: RunnerEnvironment) -> None:
    other = Volume(name="models", path="/m", files=tuple(replace(file, url="https://mirror.test/x") for file in FILES))
    offer(world, well=WEIGHTS, other=other)
    async with world.run_runner():
        ready = await status_when(world, lambda volume: volume.state == "ready")
        assert (ready.names, ready.endpoints) == (("models", "weights"), ("other", "well"))
    assert len(world.weights.downloads) == 2


async def test_two_runners_of_a_machine_fill_it_once(world: RunnerEnvironment) -> None:
    world.weights.hold = anyio.Event()
    async with world.run_runner(), world.run_runner("i2", "gpu-2"):
        for host in ("gpu-1", "gpu-2"):
            await status_when(world, lambda volume: volume.done_bytes == len(UNET) // 2, host)
        world.weights.hold.set()
        for host in ("gpu-1", "gpu-2"):
            await status_when(world, lambda volume: volume.state == "ready", host)
    assert sorted(world.weights.downloads) == ["model/unet.pth", "vae.pth"]


async def test_a_runner_that_dies_in_the_middle_leaves_nothing_half(world: RunnerEnvironment) -> None:
    world.weights.hold = anyio.Event()
    async with world.run_runner():
        await status_when(world, lambda volume: volume.done_bytes == len(UNET) // 2)
    assert not list((world.volumes_folder / "trees").iterdir())
    world.weights.hold = None
    async with world.run_runner("i2"):
        await status_when(world, lambda volume: volume.state == "ready")
        key = await world.submit("well")
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED


async def test_a_corrected_url_is_tried_at_once_and_an_endpoint_that_goes_ends_the_fill(
    world: RunnerEnvironment,
) -> None:
    world.volume_settings = replace(world.volume_settings, retry_least_s=600.0, retry_most_s=600.0)
    world.weights.fault = FillFailed(FillFailure.NOT_FOUND, "as told")
    async with world.run_runner() as runner:
        await status_when(world, lambda volume: volume.why is not None)
        world.weights.fault = None
        world.weights.hold = anyio.Event()
        mended = replace(WEIGHTS, files=tuple(replace(file, url="https://models.test/right") for file in FILES))
        offer(world, well=mended)
        runner.host.endpoints.update(world.kinds or {})
        await status_when(world, lambda volume: volume.state == "filling" and volume.done_bytes == len(UNET) // 2)
        runner.host.endpoints.clear()

        async def none_left() -> bool:
            row = await world.edge.heartbeats.get("gpu-1")
            return row is not None and row.value.volumes == ()

        await wait_for(none_left)


async def test_a_volume_that_is_damaged_under_the_runner_is_filled_again(world: RunnerEnvironment) -> None:
    async with world.run_runner():
        await status_when(world, lambda volume: volume.state == "ready")
        damaged = world.volumes_folder / "trees" / WEIGHTS.digest / "vae.pth"
        damaged.chmod(0o644)
        damaged.write_bytes(b"changed")

        async def brought_again() -> bool:
            return world.weights.downloads[2:] == ["vae.pth"]

        await wait_for(brought_again)
        await status_when(world, lambda volume: volume.state == "ready")
        assert damaged.read_bytes() == VAE


async def test_what_runs_keeps_its_volume_and_it_goes_when_the_job_has_ended(world: RunnerEnvironment) -> None:
    world.programs["well"] = world.programs["waits"]
    tree = world.volumes_folder / "trees" / WEIGHTS.digest
    async with world.run_runner():
        key = await world.submit("well")
        await world.wait_for_container()
        await world.wait_until_running(key)
    world.volumes_limit_bytes = 1
    world.kinds = {"none": LocalEndpoint(Endpoint(name="none", image="none"), world.folder)}
    async with world.run_runner("i2"):  # follows the job, whose endpoint it does not offer any more

        async def looked() -> bool:
            row = await world.edge.heartbeats.get("gpu-1")
            return row is not None and row.value.incarnation == "i2" and bool(row.value.running)

        await wait_for(looked)
        assert tree.exists()
        await world.cancel(key)
        await world.wait_until_ended(key)

        async def removed() -> bool:
            return not tree.exists()

        await wait_for(removed)
