"""Images for tests: one that plays the vendor's, and ours on it, built as a user builds it."""

import importlib.metadata
import os
import shutil
import subprocess

import pytest

from tests.images.heygem.worker_runs import VENDORS
from tests.images.job_process import IMAGES
from tests.support.docker_images import BASE_IMAGE, ROOT, build_image

BASE_OF_OURS = "lamplighter-test-heygem-base"
OURS = "lamplighter-test-heygem"
MADE = "made.mp4"
SMALL = "scrfd_500m_bnkps_shape640x640.onnx"

# What stands in for the vendor's image: our base with PyAV, which needs no other package, and the played vendor. Like
# the vendor's it has libraries of somebody's driver in it, and CUDA's beside them.
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
OF_A_DRIVER = ("libcuda.so", "libcuda.so.1", "libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1", "libnvcuvid.so.1")
OF_CUDA = ("libcudart.so.11.0", "libcudnn.so.8", "libnvrtc.so.11.2", "libcublas.so.11")
WITH_PYAV = f"FROM {BASE_IMAGE}\nCOPY packages /usr/lib/python3/dist-packages\n"
STANDS_IN = f"""
FROM {BASE_OF_OURS}
COPY base {{vendor}} /code/
ENV HEYGEM_FAKE=ok HEYGEM_FAKE_RESULT=/job/in/{MADE}
RUN cd {LIBRARIES} && touch {" ".join(OF_A_DRIVER)} {" ".join(OF_CUDA)} && mkdir -p /usr/lib/wsl/drivers
WORKDIR /code/face_detect_utils/resources
RUN echo small > {SMALL} && echo large > large.onnx
"""


@pytest.fixture(scope="session")
def with_pyav(docker_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Our base with PyAV; its name."""
    folder = tmp_path_factory.mktemp("pyav")
    wheel = importlib.metadata.distribution("av")
    for file in wheel.files or ():
        if ".." not in file.parts and "__pycache__" not in file.parts:
            target = folder / "packages" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(wheel.locate_file(file)), target)
    (folder / "Dockerfile").write_text(WITH_PYAV)
    return build_image(docker_url, BASE_OF_OURS, str(folder))


def vendors_image(docker_url: str, with_pyav: str, vendor: str) -> str:
    """An image that plays the vendor's; its name."""
    given = STANDS_IN.format(vendor=vendor)
    return build_image(docker_url, f"{with_pyav}:{vendor}", "--file", "-", str(VENDORS), given=given)


def ours(docker_url: str, base: str, tag: str, *more: str) -> "subprocess.CompletedProcess[str]":
    """Build as a user builds it, by the README's command, on `base`."""
    command = next(line for line in commands() if line.startswith("docker build"))
    env = {"PATH": os.environ["PATH"], "DOCKER_HOST": docker_url, "DOCKER_BUILDKIT": "0", "BASE": base}
    here = command.replace("-t lamplighter-heygem ", f"-t {tag} {' '.join(more)} ")
    assert here != command
    return subprocess.run(["/bin/sh", "-c", here], cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def commands() -> list[str]:
    """The README's commands, to build and apply it."""
    return (IMAGES / "heygem" / "README.md").read_text().split("```sh\n")[1].split("```")[0].splitlines()
