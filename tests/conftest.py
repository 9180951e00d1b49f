"""What a test needs of the machine is said by its marker; what is missing is said by the skip, or fails in CI."""

import contextlib
import functools
import gc
import os
import shutil
import socket
import subprocess

import docker
import pytest
from docker.errors import DockerException

from tests.support import job_user
from tests.support.bytecode import compile_commands, enable_bytecode_cache

enable_bytecode_cache()
gc.disable()  # until the tests are collected: it would walk a heap that only grows, 3 s in each worker
pytest_plugins = ["tests.event_loop", "tests.parallel"]

HOW = "start one (deploy/docker/engine.sh) or set DOCKER_HOST"


@functools.cache
def engine_missing() -> str | None:
    """Why no Docker engine answers, in one line; None where one does."""
    scheme, _, place = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").partition("://")
    try:
        if scheme == "unix":  # asked first by hand: docker-py leaves the socket open when nobody listens
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(place)
        with contextlib.closing(docker.from_env(version="1.41", timeout=10)) as client:
            client.ping()
    except (DockerException, OSError) as error:
        return f"no Docker engine answers at {scheme}://{place} ({type(error).__name__}): {HOW}"
    return None


@functools.cache
def gpu_missing() -> str | None:
    """Why there is no NVIDIA GPU, in one line; None where there is one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "no nvidia-smi: this machine has no NVIDIA GPU"
    asked = subprocess.run([program, "-L"], capture_output=True, text=True, check=False)
    return None if asked.returncode == 0 else f"nvidia-smi lists no GPU: {(asked.stdout + asked.stderr).strip()}"


NEEDS = (("docker", engine_missing, "REQUIRE_DOCKER"), ("gpu", gpu_missing, "REQUIRE_GPU"))


def pytest_configure(config: pytest.Config) -> None:
    """Compile once; where root cannot run jobs as another user, tell what the tests start to run them as root."""
    os.environ.update(job_user.runner_settings())
    compile_commands(config)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Let the garbage collector skip what was imported, and run seldom: it took a quarter of the quick tests' time.

    The little garbage among it stays: collecting it takes 0.3 s.
    """
    gc.freeze()
    gc.set_threshold(100_000, 5, 5)
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, missing, required in NEEDS:
        if item.get_closest_marker(marker) and (why := missing()):
            if os.environ.get(required) == "1":
                pytest.fail(f"{required}=1, but {why}", pytrace=False)
            pytest.skip(why)
