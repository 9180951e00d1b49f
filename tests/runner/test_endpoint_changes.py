"""An endpoint that changes while the runner runs: it is noticed, recorded with each job, and warm containers go."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from runner.endpoints import SOURCE_LIMIT_BYTES, LocalEndpoint, find_folder_digest, load_endpoints
from runner.engines.port import LocalImage
from schemas.endpoint import ProcessCommand
from schemas.host import HostCapabilities
from schemas.job import JobProgram, Status
from tests.runner.warm_programs import warm_program
from tests.support.fake_images import FakeImageStore, FakeRegistry, image_id
from tests.support.runner_environment import RunnerEnvironment, succeed
from tests.support.wait import wait_for

TEXT = 'name = "well"\nimage = "well"\n{more}\n[resources]\nmemory_mb = 16\ndisk_mb = 0\n'


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    """Return an environment whose endpoints are in files."""
    for name in ("hosts", "images", "images/well"):
        (tmp_path / name).mkdir()
    made = RunnerEnvironment(tmp_path / "hosts")
    made.programs = {"well": warm_program(succeed), "other": warm_program(succeed)}
    made.endpoint_folders = (tmp_path / "images",)
    write(made)
    made.kinds = dict(load_endpoints(made.endpoint_folders))
    return made


def file_of(world: RunnerEnvironment) -> Path:
    return world.endpoint_folders[0] / "well" / "endpoint.toml"


def write(world: RunnerEnvironment, more: str = "", text: str = TEXT) -> None:
    """Replace the file by a rename, as careful editors do."""
    part = file_of(world).with_suffix(".part")
    part.write_text(text.format(more=more))
    part.rename(file_of(world))


async def capabilities_when_described(world: RunnerEnvironment, description: str) -> HostCapabilities:
    async def told() -> HostCapabilities | None:
        row = await world.edge.capabilities.get("gpu-1")
        if row is None or [one.description for one in row.value.endpoints] != [description]:
            return None
        return row.value

    return await wait_for(told)


async def test_each_job_records_what_ran(world: RunnerEnvironment) -> None:
    world.images = FakeImageStore(FakeRegistry())
    built = world.images.build("well", "well")
    async with world.run_runner():
        first = await world.wait_until_ended(await world.submit("well", "j1"))
        write(world, 'description = "changed"')
        told = await capabilities_when_described(world, "changed")
        second = await world.wait_until_ended(await world.submit("well", "j2"))
    assert first.program is not None
    assert second.program is not None
    assert (first.program.image, first.program.image_digest) == ("well", built.digest)
    assert (first.program.endpoint_digest or "")[:7] == "sha256:"
    assert second.program.image_digest == built.digest
    assert second.program.endpoint_digest != first.program.endpoint_digest
    assert told.programs == {"well": second.program}


async def test_plain_processes_record_no_image(world: RunnerEnvironment) -> None:
    async with world.run_runner():
        done = await world.wait_until_ended(await world.submit("well"))
    assert world.kinds is not None
    assert done.program == JobProgram(endpoint_digest=world.kinds["well"].digest)


async def test_a_file_that_is_not_valid_changes_nothing_and_is_reported(world: RunnerEnvironment) -> None:
    async def reported() -> tuple[str, ...] | None:
        row = await world.edge.heartbeats.get("gpu-1")
        return row.value.blocked_work if row else None

    async def mended() -> bool:
        return await reported() == ()

    async with world.run_runner():
        write(world, "nonsense = 1")
        (problem,) = await wait_for(reported)
        assert problem.startswith("use the changed endpoints: ")
        assert "nonsense" in problem
        assert str(file_of(world)) in problem
        assert (await world.wait_until_ended(await world.submit("well"))).status is Status.SUCCEEDED
        write(world)
        await wait_for(mended)


async def test_warm_containers_of_the_old_endpoint_and_of_the_old_files_go(world: RunnerEnvironment) -> None:
    async def replaced(old: set[str]) -> set[str] | None:
        handles = set(world.boxes)
        return handles if handles and not handles & old else None

    write(world, "warm = true")
    async with world.run_runner():
        await world.wait_for_warm("well")
        first = set(world.boxes)
        write(world, "warm = true # changed")
        second = await wait_for(lambda: replaced(first))
        file_of(world).with_name("main.py").write_text("print()")
        await wait_for(lambda: replaced(second))
        await world.wait_for_warm("well")


async def test_a_new_endpoint_is_claimed_and_a_removed_one_is_not_offered(world: RunnerEnvironment) -> None:
    async def offers() -> list[str]:
        row = await world.edge.capabilities.get("gpu-1")
        return [one.name for one in row.value.endpoints] if row else []

    async def offers_only_other() -> bool:
        return await offers() == ["other"]

    async with world.run_runner():
        folder = world.endpoint_folders[0] / "other"
        folder.mkdir()
        (folder / "endpoint.toml").write_text(TEXT.format(more="").replace("well", "other"))
        assert (await world.wait_until_ended(await world.submit("other"))).status is Status.SUCCEEDED
        file_of(world).unlink()
        await wait_for(offers_only_other)


async def test_a_look_at_an_endpoint_with_a_network_changes_nothing(world: RunnerEnvironment) -> None:
    world.images = store = FakeImageStore(FakeRegistry())
    for name in ("well", "other", "python"):
        store.build(name, name)
    world.egress_image = "python"
    write(world, 'network = "egress"')
    async with world.run_runner() as runner:

        async def has_both() -> LocalEndpoint | None:
            found = runner.host.endpoints.get("well")
            return found if found and found.image and found.network_image else None

        before = await wait_for(has_both)
        (world.endpoint_folders[0] / "other").mkdir()
        file_of(world).parent.with_name("other").joinpath("endpoint.toml").write_text(
            TEXT.format(more="").replace("well", "other")
        )
        assert (await world.wait_until_ended(await world.submit("other"))).status is Status.SUCCEEDED
        assert runner.host.endpoints["well"] is before


async def test_an_image_built_again_under_its_tag_is_noticed(world: RunnerEnvironment) -> None:
    world.images = store = FakeImageStore(FakeRegistry())
    store.build("well", "well")
    folder = file_of(world).parent
    (folder / "Dockerfile").write_text("FROM scratch\n")
    async with world.run_runner():
        first = await world.wait_until_ended(await world.submit("well", "j1"))
        before = await world.edge.capabilities.get("gpu-1")
        assert before is not None
        (folder / "main.py").write_text("changed")
        rebuilt = store.build("well", "other")

        async def told() -> HostCapabilities | None:
            row = await world.edge.capabilities.get("gpu-1")
            return row.value if row and row.value.programs["well"].image_digest == rebuilt.digest else None

        built = await wait_for(told)
        assert built is not None
        assert built.sources == {"well": find_folder_digest(folder)}
        assert before.value.sources.keys() == {"well"}
        assert before.value.sources != built.sources
        second = await world.wait_until_ended(await world.submit("well", "j2"))
    assert first.program is not None
    assert second.program is not None
    assert (first.program.image_digest, second.program.image_digest) == (image_id("well"), image_id("other"))


def make_source(folder: Path) -> Path:
    """Write the folder of an image."""
    (folder / "app" / "deep").mkdir(parents=True)
    for name, text in (("endpoint.toml", TEXT), ("Dockerfile", "FROM scratch\n"), ("app/deep/main.py", "pass\n")):
        (folder / name).write_text(text.format(more=""))
    return folder


def test_the_digest_of_a_folder_depends_on_what_an_image_is_built_from_and_not_on_its_place(tmp_path: Path) -> None:
    one, other = make_source(tmp_path / "one"), make_source(tmp_path / "other")
    digest = find_folder_digest(one)
    assert digest is not None
    (other / ".cache").write_text("not looked at")
    assert find_folder_digest(other) == digest
    (other / "app" / "deep" / "main.py").chmod(0o755)
    assert find_folder_digest(other) != digest
    (one / "app" / "deep" / "main.py").write_text("raise\n")
    assert find_folder_digest(one) != digest
    with (one / "weights.bin").open("wb") as file:
        file.truncate(SOURCE_LIMIT_BYTES)
    assert find_folder_digest(one) is None


def test_only_a_program_that_came_from_no_registry_is_told_by_its_folder(tmp_path: Path) -> None:
    folder = make_source(tmp_path / "well")
    (loaded,) = load_endpoints([folder]).values()

    def source(image: LocalImage | None, endpoint: LocalEndpoint = loaded) -> str | None:
        return replace(endpoint, image=image).source_digest

    assert source(LocalImage("sha256:a", "sha256:a")) == loaded.folder_digest
    assert source(LocalImage("sha256:a", "sha256:manifest")) is None
    assert source(None) is None
    plain = replace(loaded, config=replace(loaded.config, process=ProcessCommand(("run",))))
    assert source(None, plain) == loaded.folder_digest
    (folder / "Dockerfile").unlink()
    assert source(LocalImage("sha256:a", "sha256:a")) is None  # it was loaded from an archive
