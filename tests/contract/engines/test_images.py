"""Contract of an engine's images: the fake and Docker with a real registry."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest

from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.docker_replies import PullProgressParser, classify_pull_failure
from runner.engines.port import ImageStore, LocalImage, PullFailed, PullFailure, PullProgress, RegistryLogin
from schemas.endpoint_parts import ImageReference, parse_image_reference
from tests.contract.engines.image_rigs import FakeImageRig, ImageRig, docker_image_rig
from tests.support.image_registry import (
    LOGIN,
    build_small_image,
    require_registry,
    run_registry,
    write_docker_config,
)
from tests.support.tcp_proxy import TcpProxy, serve_proxy

pytestmark = pytest.mark.timeout(120)
STORES = ["memory", pytest.param("docker", marks=pytest.mark.docker)]
DEADLINE_S = 60.0


@pytest.fixture
async def docker(request: pytest.FixtureRequest) -> AsyncIterator[DockerEngine]:
    require_registry()
    async with DockerEngine(DockerSettings(base_url=request.getfixturevalue("docker_url"))) as engine:
        yield engine


async def _open_rig(
    request: pytest.FixtureRequest, folder: Path, *, with_login: bool = False
) -> AsyncIterator[ImageRig]:
    if request.param == "memory":
        yield FakeImageRig(LOGIN if with_login else None)
        return
    require_registry()
    url = request.getfixturevalue("docker_url")
    async with DockerEngine(DockerSettings(base_url=url)) as engine:
        with docker_image_rig(engine, url, folder, with_login=with_login) as rig:
            yield rig


@pytest.fixture(params=STORES)
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ImageRig]:
    async for made in _open_rig(request, tmp_path):
        yield made


@pytest.fixture(params=STORES)
async def locked_rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ImageRig]:
    async for made in _open_rig(request, tmp_path, with_login=True):
        yield made


async def pull(store: ImageStore, reference: str, login: RegistryLogin | None = None) -> list[PullProgress]:
    async with aclosing(store.pull(parse_image_reference(reference), login)) as progress:
        with anyio.fail_after(DEADLINE_S):
            return [one async for one in progress]


async def refusal(store: ImageStore, reference: str, login: RegistryLogin | None = None) -> PullFailed:
    with pytest.raises(PullFailed) as failed:
        await pull(store, reference, login)
    return failed.value


async def find(store: ImageStore, reference: str) -> LocalImage:
    found = await store.inspect(parse_image_reference(reference))
    assert found is not None
    return found


async def test_an_image_is_pulled_by_its_tag_and_by_its_digest(rig: ImageRig) -> None:
    reference = rig.publish("models/echo:1", "one")
    assert await rig.store.inspect(parse_image_reference(reference)) is None
    progress = await pull(rig.store, reference)
    assert (progress[-1].percent, progress == sorted(progress, key=lambda one: one.percent)) == (100, True)
    image = await find(rig.store, reference)
    assert {image.id[:7], image.digest[:7]} == {"sha256:"}
    assert image.id != image.digest


async def test_a_tag_that_moved_is_followed(rig: ImageRig) -> None:
    reference = rig.publish("echo:latest", "one")
    await pull(rig.store, reference)
    before = await find(rig.store, reference)
    await pull(rig.store, reference)
    assert await find(rig.store, reference) == before
    assert rig.publish("echo:latest", "two") == reference
    await pull(rig.store, reference)
    assert (await find(rig.store, reference)).id != before.id


async def test_a_tag_or_a_repository_that_does_not_exist_is_told_apart(rig: ImageRig) -> None:
    reference = rig.publish("echo:1", "one")
    assert (await refusal(rig.store, reference.replace(":1", ":2"))).code is PullFailure.NOT_FOUND


async def test_a_login_is_needed_and_used(locked_rig: ImageRig) -> None:
    reference = locked_rig.publish("echo:1", "one")
    for login in (None, RegistryLogin(LOGIN.username, "wrong")):
        assert (await refusal(locked_rig.store, reference, login)).code is PullFailure.LOGIN_REFUSED
    await pull(locked_rig.store, reference, LOGIN)
    assert await find(locked_rig.store, reference)


async def test_a_registry_that_is_away_and_comes_back(rig: ImageRig) -> None:
    reference = rig.publish("echo:1", "one")
    rig.stop_registry()
    assert (await refusal(rig.store, reference)).code is PullFailure.REGISTRY_UNREACHABLE
    rig.start_registry()
    await pull(rig.store, reference)
    assert await find(rig.store, reference)


async def test_only_an_image_that_nothing_uses_is_removed(rig: ImageRig) -> None:
    used, unused = rig.publish("used:1", "one"), rig.publish("unused:1", "two")
    for reference in (used, unused):
        await pull(rig.store, reference)
    rig.use(used)
    assert not await rig.store.remove((await find(rig.store, used)).id)
    assert await rig.store.remove((await find(rig.store, unused)).id)
    assert await rig.store.inspect(parse_image_reference(unused)) is None
    assert await find(rig.store, used)
    assert await rig.store.remove("sha256:" + "0" * 64)
    assert (await rig.store.free_bytes() or 0) > 0


@pytest.mark.docker
async def test_docker_pulls_a_pinned_image_over_tls_with_the_login_of_its_config(
    docker: DockerEngine, docker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with docker_image_rig(docker, docker_url, tmp_path, with_login=True, with_tls=True) as rig:
        tagged = rig.publish("echo:1", "one")
        await pull(docker.images, tagged, LOGIN)
        image = await find(docker.images, tagged)
        await docker.images.remove(image.id)
        pinned = f"{tagged.removesuffix(':1')}@{image.digest}"
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "client"))
        assert (await refusal(docker.images, pinned)).code is PullFailure.LOGIN_REFUSED
        write_docker_config(tmp_path / "client", pinned.partition("/")[0], LOGIN)
        await pull(docker.images, pinned)
        assert await find(docker.images, pinned) == image


@pytest.mark.docker
async def test_docker_goes_on_after_a_cut_in_the_middle(docker: DockerEngine, docker_url: str, tmp_path: Path) -> None:
    """The network goes silent inside a layer: the pull is left and made again, as the puller does."""
    with run_registry(tmp_path / "registry") as registry:
        built = build_small_image(docker_url, "lamplighter-test-large", tmp_path / "large", megabytes=16)
        pushed = registry.push(docker_url, built, "large:1")
        host, _, port = registry.address.partition(":")
        async with serve_proxy(TcpProxy(lambda: (host, int(port)), cut_after_bytes=8 << 20)) as proxy:
            reference = pushed.replace(registry.address, f"{host}:{proxy.port}")
            arrived = 0
            with anyio.move_on_after(DEADLINE_S) as patience:
                async with aclosing(docker.images.pull(parse_image_reference(reference), None)) as progress:
                    async for one in progress:
                        arrived = one.done_bytes
                        if arrived:
                            patience.deadline = anyio.current_time() + 2.0
            assert patience.cancelled_caught
            assert 0 < arrived < 16 << 20
            proxy.heal()
            await pull(docker.images, reference)
            assert await find(docker.images, reference)


FAILURES = {
    "write /var/lib/docker/tmp/GetImageBlob1: no space left on device": PullFailure.DISK_FULL,
    "manifest for r.test/x:2 not found: manifest unknown: manifest unknown": PullFailure.NOT_FOUND,
    "manifest unknown: manifest tagged by 2 is not found": PullFailure.NOT_FOUND,
    "pull access denied for x, repository does not exist or may require 'docker login'": PullFailure.LOGIN_REFUSED,
    "Head https://r.test/v2/x/manifests/1: unauthorized: authentication required": PullFailure.LOGIN_REFUSED,
    "Get https://r.test/v2/: dial tcp: lookup r.test: no such host": PullFailure.REGISTRY_UNREACHABLE,
    "Get https://r.test/v2/: x509: certificate signed by unknown authority": PullFailure.REGISTRY_UNREACHABLE,
    "unexpected EOF": PullFailure.INTERRUPTED,
    "failed to register layer: exit status 1": PullFailure.FAILED,
}


@pytest.mark.parametrize("text", FAILURES)
def test_the_text_of_a_failed_pull_says_what_is_wrong(text: str) -> None:
    assert classify_pull_failure(text).code is FAILURES[text]


def test_progress_is_the_mean_of_the_layers_and_survives_any_cut_of_the_stream() -> None:
    lines = (
        b'{"status":"Pulling from library/x","id":"1"}\r\n'
        b'{"status":"Pulling fs layer","progressDetail":{},"id":"a"}\r\n'
        b'{"status":"Pulling fs layer","progressDetail":{},"id":"b"}\r\n'
        b'{"status":"Downloading","progressDetail":{"current":50,"total":100},"id":"a"}\r\n'
        b'{"status":"Download complete","progressDetail":{},"id":"a"}\r\n'
        b'{"status":"Already exists","progressDetail":{},"id":"b"}\r\n'
    )
    parser = PullProgressParser()
    seen = [one for byte in lines for one in parser.feed(bytes([byte]))]
    assert [(one.done_bytes, one.total_bytes, one.percent) for one in seen] == [
        (0, 0, 0),
        (0, 0, 0),
        (50, 100, 25),
        (100, 100, 50),
        (100, 100, 100),
    ]
    with pytest.raises(PullFailed, match="no space left"):
        list(parser.feed(b'{"errorDetail":{"message":"no space left on device"},"error":"no space left on device"}\n'))


REFERENCES = {
    "python:3.12-slim": ImageReference("docker.io", "library/python", "3.12-slim"),
    "lamplighter-echo": ImageReference("docker.io", "library/lamplighter-echo", "latest"),
    "ann/tts": ImageReference("docker.io", "ann/tts", "latest"),
    "ghcr.io/ann/tts:1": ImageReference("ghcr.io", "ann/tts", "1"),
    "localhost/x": ImageReference("localhost", "x", "latest"),
    "gpu.lan:5000/a/b@sha256:" + "0" * 64: ImageReference("gpu.lan:5000", "a/b", None, "sha256:" + "0" * 64),
}


@pytest.mark.parametrize("text", REFERENCES)
def test_a_reference_is_taken_apart(text: str) -> None:
    assert parse_image_reference(text) == REFERENCES[text]
    assert parse_image_reference(REFERENCES[text].text) == REFERENCES[text]


@pytest.mark.parametrize("text", ["", "Upper/case", "a b", "x:", "x@sha256:12", "https://r.test/x", "x/"])
def test_what_names_no_image_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not the name of an image"):
        parse_image_reference(text)
