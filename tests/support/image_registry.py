"""A real registry of images on loopback: Debian's docker-registry, with or without a login and TLS."""

import json
import os
import shutil
import signal
import socket
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runner.engines.port import RegistryLogin
from tests.support.docker_images import run_docker
from tests.support.requirements import require
from tests.support.reserved_ports import HOST, reserve_port
from tests.support.wait import wait_for_sync

PROGRAM = "docker-registry"
LOGIN = RegistryLogin("ann", "opensesame")
# bcrypt of the password above, as `htpasswd -B` writes it.
HTPASSWD = f"{LOGIN.username}:$2y$05$53fDVGjvPEaJXKyyTuq.O.4kvtSnk/ZBu2oEo6ZimVwaRJ02HSxdC\n"


def require_registry() -> None:
    """Skip or fail the test where the program is missing."""
    missing = shutil.which(PROGRAM) is None
    require("docker-registry is not installed: apt-get install docker-registry" if missing else None, "REQUIRE_IMAGES")


class ImageRegistry:
    """One registry in `folder`, at a port that it keeps. It can be stopped and started again."""

    def __init__(self, folder: Path, port: int, certificate: tuple[Path, Path] | None, *, with_login: bool) -> None:
        self.address = f"{HOST}:{port}"
        self._folder = folder
        self._config = folder / "registry.yml"
        self._log = folder / "registry.log"
        self._process: subprocess.Popen[bytes] | None = None
        write_docker_config(folder / "docker", self.address, LOGIN)
        (folder / "htpasswd").write_text(HTPASSWD)
        auth = f"auth: {{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}\n" if with_login else ""
        tls = f", tls: {{certificate: {certificate[0]}, key: {certificate[1]}}}" if certificate else ""
        self._config.write_text(
            f"version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {folder / 'store'}}}}}\n"
            f"http: {{addr: '{self.address}'{tls}}}\n{auth}"
        )

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([PROGRAM, "serve", self._config], stdout=log, stderr=log)
        wait_for_sync(self._listens)

    def stop(self) -> None:
        """Stop it. The images stay."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)
            self._process = None

    def _listens(self) -> bool:
        with socket.socket() as attempt:
            return attempt.connect_ex((HOST, int(self.address.rpartition(":")[2]))) == 0

    def push(self, docker_url: str, image: str, name: str) -> str:
        """Push `image` of the engine as `name`, and remove both from the engine. Return the reference."""
        reference = f"{self.address}/{name}"
        environ = os.environ | {"DOCKER_CONFIG": str(self._folder / "docker")}
        for step in (("tag", image, reference), ("push", "--quiet", reference), ("rmi", reference, image)):
            done = subprocess.run(
                ["docker", "--host", docker_url, *step], env=environ, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        return reference


def write_docker_config(folder: Path, address: str, login: RegistryLogin) -> None:
    """Write a config.json as `docker login` does."""
    folder.mkdir(exist_ok=True)
    token = b64encode(f"{login.username}:{login.password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {address: {"auth": token}}}))


@contextmanager
def run_registry(
    folder: Path, *, certificate: tuple[Path, Path] | None = None, with_login: bool = False
) -> Iterator[ImageRegistry]:
    """Run a registry while the block runs."""
    folder.mkdir()
    with reserve_port() as held:
        registry = ImageRegistry(folder, held.getsockname()[1], certificate, with_login=with_login)
        registry.start()
        try:
            yield registry
        finally:
            registry.stop()


def build_small_image(docker_url: str, tag: str, folder: Path, megabytes: int = 1) -> str:
    """Build an image of random bytes, which no compression makes smaller."""
    folder.mkdir(exist_ok=True)
    (folder / "data").write_bytes(os.urandom(megabytes << 20))
    (folder / "Dockerfile").write_text('FROM scratch\nCOPY data /data\nCMD ["/data"]\n')
    done = run_docker(docker_url, "build", "--quiet", "--tag", tag, str(folder))
    assert done.returncode == 0, done.stderr
    return tag
