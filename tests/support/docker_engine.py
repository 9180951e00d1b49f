"""A Docker engine of the test's own, which may be killed: deploy/docker/engine.sh, with live-restore or without."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from tests.support.docker_images import ROOT, SOCKET, build_image, run_docker

SCRIPT = ROOT / "deploy" / "docker" / "engine.sh"
CHAOS_ENDPOINTS = ROOT / "tests" / "chaos" / "endpoints"
CHAOS_IMAGES = {f"lamplighter-test-{name}": CHAOS_ENDPOINTS / name for name in ("stamped", "reused")}


def why_no_engine() -> str | None:
    """Return why no engine can be started here, or None."""
    if os.geteuid() != 0:
        return "starting a Docker engine needs root"
    missing = [program for program in ("docker", "dockerd", "containerd") if shutil.which(program) is None]
    return f"{', '.join(missing)} not installed" if missing else None


class OwnDockerEngine:
    """One engine in `folder`. Its containerd, and with it the containers, outlive a kill of the daemon."""

    def __init__(self, folder: Path, *, live_restore: bool, config: str = "") -> None:
        self._folder = folder
        self._environ = os.environ | {"LIVE_RESTORE": "on" if live_restore else "off", "DAEMON_CONFIG": config}
        self.url = f"unix://{folder}/docker.sock"

    def call(self, verb: str) -> None:
        """Run engine.sh with start, stop or status."""
        done = subprocess.run(
            ["/bin/sh", SCRIPT, verb, self._folder],
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"engine.sh {verb}: {done.stdout}{done.stderr}")

    def kill(self) -> None:
        """Kill the daemon with SIGKILL, as a crash would."""
        os.kill(int((self._folder / "dockerd.pid").read_text()), signal.SIGKILL)

    def load(self, image: str) -> None:
        """Copy an image from the engine that has echo's; the tests' own image is built there first."""
        source = os.environ.get("DOCKER_HOST") or SOCKET
        if folder := CHAOS_IMAGES.get(image):
            build_image(source, image, str(folder))
        with subprocess.Popen(["docker", "--host", source, "save", image], stdout=subprocess.PIPE) as saving:
            subprocess.run(
                ["docker", "--host", self.url, "load", "--quiet"], stdin=saving.stdout, capture_output=True, check=True
            )

    def kill_container(self, handle: str) -> None:
        """Kill the container's first process with SIGKILL."""
        run_docker(self.url, "kill", handle)


@contextmanager
def run_docker_engine(
    *, live_restore: bool, images: Iterable[str] = CHAOS_IMAGES, config: str = ""
) -> Iterator[OwnDockerEngine]:
    """Run an engine with the images, and remove it afterwards. `config`: the text of its daemon.json.

    Its path must be short: it holds a socket.
    """
    folder = Path(mkdtemp(prefix="chaos-"))
    engine = OwnDockerEngine(folder, live_restore=live_restore, config=config)
    try:
        engine.call("start")
        for image in images:
            engine.load(image)
        yield engine
    finally:
        engine.call("stop")
        shutil.rmtree(folder, ignore_errors=True)
