"""The images of a host's endpoints: pulled ahead of need, followed, told apart when they fail, removed for space."""

import re
from collections.abc import Callable
from pathlib import Path

import anyio
import msgspec
import pytest
from msgspec.structs import replace

from runner.endpoints import LocalEndpoint
from runner.engines.port import RegistryLogin
from runner.settings import RegistrySettings
from schemas.endpoint import Endpoint, Resources
from schemas.host import ImageStatus
from schemas.job import Status
from tests.runner.warm_programs import warm_program
from tests.support.fake_engine import FakeContainer
from tests.support.fake_images import FakeImageStore, FakeRegistry, image_id
from tests.support.runner_environment import RunnerEnvironment, succeed
from tests.support.wait import wait_for

NAME = "registry.test/well:1"
LOGIN = RegistryLogin("ann", "secret")


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    folder = tmp_path / "hosts"
    folder.mkdir()
    made = RunnerEnvironment(folder)
    made.images = FakeImageStore(FakeRegistry())
    made.images.registry.contents[NAME] = "well"
    offer(made, NAME)
    return made


def offer(world: RunnerEnvironment, image: str, *, warm: bool = False) -> None:
    """Let the next runner offer one endpoint of this image."""
    config = Endpoint(name="well", image=image, warm=warm, resources=Resources(disk_mb=0, memory_mb=16))
    world.kinds = {"well": LocalEndpoint(config, world.folder)}


def store_of(world: RunnerEnvironment) -> FakeImageStore:
    assert world.images is not None
    return world.images


async def status_when(world: RunnerEnvironment, condition: Callable[[ImageStatus], bool]) -> ImageStatus:
    """Return the heartbeat's only image once it is as wanted."""

    async def told() -> ImageStatus | None:
        row = await world.edge.heartbeats.get("gpu-1")
        images = row.value.images if row else ()
        return images[0] if images and condition(images[0]) else None

    return await wait_for(told)


async def reason_of(world: RunnerEnvironment) -> str | None:
    row = await world.edge.heartbeats.get("gpu-1")
    return row.value.unschedulable.get("well") if row else None


async def test_an_image_is_pulled_before_a_job_needs_it_and_the_job_waits_for_it(world: RunnerEnvironment) -> None:
    store_of(world).registry.hold = anyio.Event()
    async with world.run_runner():
        pulling = await status_when(world, lambda image: image.percent == 50)
        assert (pulling.state, pulling.endpoints, pulling.digest) == ("pulling", ("well",), None)
        assert (pulling.done_bytes, pulling.total_bytes) == (1 << 19, 1 << 20)
        assert await reason_of(world) == "image_pulling"
        key = await world.submit("well")
        store_of(world).registry.hold.set()
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
        ready = await status_when(world, lambda image: image.state == "ready")
        assert (ready.digest, ready.percent, ready.why) == (image_id("manifest of well"), None, None)
    assert await world.event_types(key) == ["Submitted", "Started", "Succeeded"]
    assert store_of(world).registry.pulls == [NAME]


async def test_the_image_of_networks_is_pulled_and_waited_for_by_jobs_with_egress_alone(
    world: RunnerEnvironment,
) -> None:
    network, store = "registry.test/python:3", store_of(world)
    world.egress_image = network
    plain = Endpoint(name="plain", image=NAME, resources=Resources(disk_mb=0, memory_mb=16))
    with_network = replace(plain, name="well", network="egress")
    world.kinds = {one.name: LocalEndpoint(one, world.folder) for one in (plain, with_network)}
    used: list[str | None] = []

    async def note_image(box: FakeContainer) -> int:
        used.append(box.spec.network_image)
        return await succeed(box)

    world.programs = {image_id("well"): note_image}

    async def why() -> str | None:
        row = await world.edge.heartbeats.get("gpu-1")
        found = {image.image: image for image in row.value.images} if row else {}
        return found[network].why if network in found else None

    async with world.run_runner():
        assert (await world.wait_until_ended(await world.submit("plain", "j1"))).status is Status.SUCCEEDED
        told = await wait_for(why)
        assert "registry.test has no registry.test/python:3 (" in told
        assert told.endswith("): correct egress.image in the settings of that host, or push it")
        assert await reason_of(world) == "image_missing"
        key = await world.submit("well", "j2")
        store.registry.contents[network] = "python"
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
    assert used == [None, store.held[network].id]
    assert await world.event_types(key) == ["Submitted", "Started", "Succeeded"]


async def test_the_container_is_started_from_the_image_that_was_seen(world: RunnerEnvironment) -> None:
    world.programs["waits-here"] = world.programs["waits"]
    store_of(world).registry.contents[NAME] = "waits-here"
    async with world.run_runner():
        await world.submit("well")
        assert (await world.wait_for_container()).spec.image == image_id("waits-here")


@pytest.mark.parametrize("name", ["login_refused", "not_found", "disk_full", "registry_unreachable"])
async def test_a_failed_pull_says_why_and_what_to_do_and_is_made_again(world: RunnerEnvironment, name: str) -> None:
    store, registry = store_of(world), store_of(world).registry
    breaks: dict[str, tuple[Callable[[], object], Callable[[], object], str]] = {
        "login_refused": (
            lambda: setattr(registry, "login", LOGIN),
            lambda: setattr(registry, "login", None),
            r'^registry.test refuses .*\): set username and password_file under \[registries."registry.test"\], or run',
        ),
        "not_found": (
            registry.contents.clear,
            lambda: registry.contents.update({NAME: "well"}),
            r"^registry.test has no registry.test/well:1 \(.*\): correct `image` in endpoint.toml, or push it$",
        ),
        "disk_full": (
            lambda: setattr(store, "free", 0),
            lambda: setattr(store, "free", 1 << 30),
            r"disk is full \(no space left.*\): free some space",
        ),
        "registry_unreachable": (
            lambda: setattr(registry, "is_down", True),
            lambda: setattr(registry, "is_down", False),
            "registry.test cannot be reached",
        ),
    }
    break_it, mend_it, words = breaks[name]
    break_it()
    async with world.run_runner():
        key = await world.submit("well")
        told = await status_when(world, lambda image: image.why is not None)
        assert told.state in {"missing", "pulling"}
        assert told.why is not None
        assert re.search(words, told.why)
        assert "\n" not in told.why
        await wait_for(lambda: _pulled_twice(registry))
        mend_it()
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
        assert (await status_when(world, lambda image: image.state == "ready")).why is None


async def _pulled_twice(registry: FakeRegistry) -> bool:
    return len(registry.pulls) >= 2


async def test_the_login_of_the_settings_is_read_at_each_pull(world: RunnerEnvironment, tmp_path: Path) -> None:
    store_of(world).registry.login = LOGIN
    password = tmp_path / "password"
    world.registries = {"registry.test": RegistrySettings("ann", password)}
    async with world.run_runner():
        unread = await status_when(world, lambda image: image.why is not None)
        assert "password_file cannot be read" in (unread.why or "")
        password.write_text("secret\n")
        await status_when(world, lambda image: image.state == "ready")


async def test_a_mirror_is_asked_first_and_the_registry_after_it(world: RunnerEnvironment) -> None:
    world.registries = {"registry.test": RegistrySettings(mirror="mirror.test:5000/cache")}
    registry, at_mirror = store_of(world).registry, "mirror.test:5000/cache/well:1"
    async with world.run_runner():
        await status_when(world, lambda image: image.state == "ready")
    assert registry.pulls == [at_mirror, NAME]
    store_of(world).held.clear()
    registry.contents[at_mirror] = "well"
    async with world.run_runner("i2"):
        await status_when(world, lambda image: image.state == "ready")
        assert (await world.wait_until_ended(await world.submit("well"))).status is Status.SUCCEEDED
    assert registry.pulls == [at_mirror, NAME, at_mirror]


async def test_a_tag_that_moved_is_followed_and_its_warm_containers_go(world: RunnerEnvironment) -> None:
    offer(world, NAME, warm=True)
    world.programs |= {"old": warm_program(succeed), "new": warm_program(succeed)}
    registry = store_of(world).registry
    registry.contents[NAME] = "old"
    world.image_settings = replace(world.image_settings, refresh_s=0.05)
    async with world.run_runner():
        await wait_for(lambda: _warm_of(world, "old"))
        registry.contents[NAME] = "new"
        await wait_for(lambda: _warm_of(world, "new"))
        await wait_for(lambda: _none_of(world, "old"))


async def _warm_of(world: RunnerEnvironment, content: str) -> bool:
    row = await world.edge.heartbeats.get("gpu-1")
    is_ready = row is not None and any(one.ready for one in row.value.warm)
    return is_ready and any(box.spec.image == image_id(content) for box in world.boxes.values())


async def _none_of(world: RunnerEnvironment, content: str) -> bool:
    return all(box.spec.image != image_id(content) for box in world.boxes.values())


async def test_only_images_that_we_pulled_are_removed_and_only_when_space_is_short(world: RunnerEnvironment) -> None:
    store = store_of(world)
    offer(world, "registry.test/old:1")
    store.registry.contents["registry.test/old:1"] = "waits"
    built = store.build("built-here", "built")
    async with world.run_runner():
        await status_when(world, lambda image: image.state == "ready")
    offer(world, NAME)
    async with world.run_runner("i2"):
        await status_when(world, lambda image: image.image == NAME and image.state == "ready")
        assert "registry.test/old:1" in store.held
    store.free = 0
    world.image_settings = replace(world.image_settings, reserve_mb=1)
    async with world.run_runner("i3"):
        await wait_for(lambda: _is_gone(store, "registry.test/old:1"))
    assert set(store.held.values()) == {built, store.held[NAME]}
    record = msgspec.json.decode(world.folder.with_name("hosts.images").read_bytes())
    assert record == {image_id("well"): NAME}


async def _is_gone(store: FakeImageStore, name: str) -> bool:
    return name not in store.held


async def test_a_full_disk_makes_room_for_the_next_try(world: RunnerEnvironment) -> None:
    store = store_of(world)
    offer(world, "registry.test/old:1")
    store.registry.contents["registry.test/old:1"] = "waits"
    async with world.run_runner():
        await status_when(world, lambda image: image.state == "ready")
    offer(world, NAME)
    store.free = 0
    async with world.run_runner("i2"):
        assert (await world.wait_until_ended(await world.submit("well"))).status is Status.SUCCEEDED
    assert list(store.held) == [NAME]


async def test_an_image_that_is_removed_under_the_runner_is_pulled_again(world: RunnerEnvironment) -> None:
    async with world.run_runner():
        await status_when(world, lambda image: image.state == "ready")
        store_of(world).held.clear()
        await wait_for(lambda: _pulled_twice(store_of(world).registry))
        await status_when(world, lambda image: image.state == "ready")


async def test_a_host_that_may_not_pull_says_so(world: RunnerEnvironment) -> None:
    world.image_settings = replace(world.image_settings, pull=False)
    async with world.run_runner():
        told = await status_when(world, lambda image: image.why is not None)
        assert "pull = false): build or pull registry.test/well:1 there" in (told.why or "")
        assert await reason_of(world) == "image_missing"
        key = await world.submit("well")
        store_of(world).build(NAME, "well")
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
    assert store_of(world).registry.pulls == []


async def test_a_pull_that_brings_nothing_is_left_and_made_again(world: RunnerEnvironment) -> None:
    registry = store_of(world).registry
    registry.hold = anyio.Event()
    world.image_settings = replace(world.image_settings, stall_s=0.05)
    async with world.run_runner():
        told = await status_when(world, lambda image: image.why is not None)
        assert "broke (nothing arrived for 0 s): nothing, it is tried again" in (told.why or "")
        registry.hold = None
        await status_when(world, lambda image: image.state == "ready")


async def test_an_engine_without_images_reports_none(world: RunnerEnvironment) -> None:
    world.images = None
    offer(world, "well")
    async with world.run_runner():
        assert (await world.wait_until_ended(await world.submit("well"))).status is Status.SUCCEEDED
        row = await world.edge.heartbeats.get("gpu-1")
    assert row is not None
    assert row.value.images == ()
