"""Images for tests on the Docker engine at DOCKER_HOST, or Docker's own socket. Mark what uses them `docker`.

Put `from tests.engine_host import docker_url, echo_image` into a conftest.py to have the fixtures.
"""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOCKET = "unix:///var/run/docker.sock"
BASE_IMAGE = "lamplighter-base:bookworm"
ECHO_IMAGE = "lamplighter-echo"


def skip_or_fail(why: str) -> None:
    """Skip with the reason, or fail where the machine promised an engine."""
    if os.environ.get("REQUIRE_DOCKER") == "1":
        pytest.fail(f"REQUIRE_DOCKER=1, but {why}")
    pytest.skip(why)


def run_docker(url: str, *args: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """One `docker` command on that engine."""
    command = ["docker", "--host", url, *args]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)


def build_image(url: str, tag: str, *args: str, given: str = "") -> str:
    """Build an image; its name. The base image must be there.

    Of several workers one builds at a time: what a second one asks for is then in the cache, and the tag stays.
    """
    lock = ROOT / ".cache" / "docker-build.lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = run_docker(url, "build", "--quiet", "--tag", tag, *args, given=given)
    assert done.returncode == 0, done.stderr
    return tag


@pytest.fixture(scope="session")
def docker_url() -> str:
    """An engine that answers (tests/conftest.py has asked) and has the base image."""
    url = os.environ.get("DOCKER_HOST") or SOCKET
    if shutil.which("docker") is None:
        skip_or_fail("there is no docker command: install Debian's docker.io")
    if run_docker(url, "image", "inspect", BASE_IMAGE).returncode != 0:
        skip_or_fail(f"image {BASE_IMAGE} is not on {url}: deploy/docker/base.sh makes it")
    return url


@pytest.fixture(scope="session")
def echo_image(docker_url: str) -> str:
    """The echo image, built from this tree."""
    images = ROOT / "images"
    return build_image(docker_url, ECHO_IMAGE, "--file", str(images / "echo" / "Dockerfile"), str(images))
