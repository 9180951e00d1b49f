"""What `just release` makes: checksums, bills of materials, and images that run."""

import json
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from deploy import release
from deploy.wheels import ROOT
from edge.core.clock import utc_now
from edge.owners.api_keys import ApiKeyStore
from lamplighter import AsyncClient
from schemas.credentials import Scope
from schemas.version import VERSION
from tests.support.docker_images import BASE_IMAGE, docker_url, run_docker
from tests.support.installation import Installation, wait_until_ready
from tests.support.requirements import require
from tests.support.reserved_ports import address_of, reserve_port
from tests.support.wait import wait_for

__all__ = ["docker_url"]

pytestmark = pytest.mark.timeout(400)  # the release is made in a fixture

ECHO = "/opt/lamplighter/lib/python3.11/site-packages/lamplighter_server/images/echo"
NAMES = [
    *(
        f"{stem}-{VERSION}{end}"
        for stem in ("lamplighter", "lamplighter_server")
        for end in ("-py3-none-any.whl", ".tar.gz")
    ),
    *(f"{name}-{VERSION}.cdx.json" for name in ("lamplighter", "lamplighter-server")),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release without its images."""
    out = tmp_path_factory.mktemp("release") / "dist"
    try:
        release.make_release(out, base=None, with_images=False)
    except release.ReleaseError as error:
        require(str(error), "REQUIRE_REGISTRY")
    return out


def test_the_checksums_are_those_of_all_files(made: Path):
    listed = [line.split("  ")[1] for line in (made / release.CHECKSUMS).read_text().splitlines()]
    assert listed == sorted(NAMES)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", release.CHECKSUMS], cwd=made, check=True)


def test_the_bills_name_every_file_that_is_installed(made: Path):
    there = {file.name.partition("-")[0].lower().replace("_", "-") for file in (made / "image/wheels").iterdir()} - {
        "pip"
    }
    found = {}
    for name in ("lamplighter", "lamplighter-server"):
        text = (made / f"{name}-{VERSION}.cdx.json").read_text()
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
        bill = json.loads(text)
        assert (bill["metadata"]["component"]["name"], bill["metadata"]["component"]["version"]) == (name, VERSION)
        assert all(one["hashes"][0]["alg"] == "SHA-256" and one["purl"] for one in bill["components"])
        found[name] = {one["name"].replace(".", "-") for one in bill["components"]} | {name}
        edges = {one["ref"]: one.get("dependsOn", []) for one in bill["dependencies"]}
        assert {ref.partition("==")[0].replace(".", "-") for ref in edges} == found[name]
    assert found["lamplighter-server"] == there
    assert found["lamplighter"] < found["lamplighter-server"]


def test_a_version_without_changes_written_down_is_not_released():
    release.check_changelog("1.2.3", "# Changes\n\n## 1.2.3 (2026-12-01)\n")
    with pytest.raises(release.ReleaseError, match=r"CHANGELOG\.md has no section for 1\.2\.3"):
        release.check_changelog("1.2.3", "# Changes\n\n## 1.2.30\n\n1.2.3\n")
    release.check_changelog(VERSION, (ROOT / "CHANGELOG.md").read_text())


def test_compose_starts_the_images_of_this_version():
    texts = [file.read_text() for file in (ROOT / "deploy/compose").iterdir()]
    named = [found for text in texts for found in re.findall(r"lamplighter-(edge|runner|relay):([\w.]+)", text)]
    assert {target for target, _ in named} >= {"edge", "runner"}
    assert {version for _, version in named} == {VERSION}


@pytest.fixture(scope="module")
def images(made: Path, docker_url: str) -> Mapping[str, str]:
    """The three images on the local base image, by target."""
    names = release.build_images(made / "image", VERSION, BASE_IMAGE)
    return dict(zip(release.IMAGE_TARGETS, names, strict=True))


def inspect(url: str, name: str, what: str) -> str:
    return run_docker(url, "inspect", "--format", what, name).stdout.strip()


@contextmanager
def container(url: str, image: str, environ: Mapping[str, str], *command: str) -> Iterator[str]:
    """Run a container in the network of this machine, and remove it at the end; yield its id."""
    settings = [word for name, value in environ.items() for word in ("--env", f"{name}={value}")]
    often = ("--health-interval=2s", "--health-start-period=0s")
    started = run_docker(url, "run", "--detach", "--network=host", *often, *settings, image, *command)
    assert started.returncode == 0, started.stderr
    name = started.stdout.strip()
    try:
        yield name
    finally:
        print(run_docker(url, "logs", name).stderr[-3000:])  # noqa: T201 - shown by pytest when the test failed
        print(inspect(url, name, "{{json .State.Health}}")[-1000:])  # noqa: T201
        run_docker(url, "rm", "--force", "--volumes", name)


async def wait_until_healthy(url: str, name: str) -> None:
    """Wait until the HEALTHCHECK of the image says so."""

    async def healthy() -> bool:
        state = inspect(url, name, "{{.State.Status}} {{.State.Health.Status}}")
        assert state.startswith(("running", "created")), state
        return state == "running healthy"

    await wait_for(healthy, timeout_s=240, interval_s=0.5)


@pytest.fixture
async def installation(tmp_path: Path) -> AsyncIterator[Installation]:
    """A broker with keys; an address for an edge."""
    port = reserve_port()
    made = Installation(tmp_path, "process", url=f"http://{address_of(port)}")
    await made.open()
    yield made
    await made.close()
    port.close()


@pytest.mark.docker
@pytest.mark.long(60)
@pytest.mark.timeout(900)
async def test_edge_runner_and_relay_run_from_their_images(
    images: Mapping[str, str], docker_url: str, installation: Installation
):
    address, port = installation.edge_address
    inside = {"LAMPLIGHTER_DATA": "/var/lib/lamplighter", "LAMPLIGHTER_ENDPOINTS": json.dumps([ECHO])}
    at_edge = {"LAMPLIGHTER_BIND": address, "LAMPLIGHTER_PORT": str(port)}
    async with installation.bus() as bus:
        ring = ApiKeyStore(bus.api_keys, utc_now, os.urandom, lambda: 0.0)
        relay_key = (await ring.create("lan", (Scope.RELAY,))).text
    switch = {"gpu-9": {"driver": "command", "on": ["true"], "off": ["true"], "state": ["true"]}}
    at_relay = {
        "LAMPLIGHTER_RELAY__URLS": json.dumps([installation.url]),
        "LAMPLIGHTER_RELAY__KEY": relay_key,
        "LAMPLIGHTER_HOSTS": json.dumps(switch),
    }
    with (
        container(docker_url, images["edge"], installation.edge_environ() | inside | at_edge) as edge,
        container(docker_url, images["runner"], installation.runner_environ("gpu-1") | inside) as runner,
        container(docker_url, images["relay"], at_relay) as relay,
    ):
        for name in (edge, runner, relay):
            await wait_until_healthy(docker_url, name)
            assert inspect(docker_url, name, "{{.Config.User}}") == "10001:10001"
        async with AsyncClient(installation.url, installation.keys["ann"], cache=installation.folder / "c") as ann:
            await wait_until_ready(ann)
            job = await ann.submit("echo", text="in an image", wait=True)
        assert (job.status, job.output.data) == ("succeeded", {"text": "in an image"})
        refused = run_docker(
            docker_url, "exec", "--env", "LAMPLIGHTER_HEALTH_FILE=/nowhere", relay, "lamplighter", "health", "relay"
        )
        assert (refused.returncode, "/nowhere cannot be read" in refused.stderr) == (1, True)
    for name in images.values():
        assert run_docker(docker_url, "run", "--rm", "--network=none", name, "--version").stdout.endswith(
            f"{VERSION}\n"
        )
