"""A host pulls an endpoint's image from a registry that asks for a login, and the job that waited for it runs."""

import json
import shutil
from pathlib import Path

import pytest

from schemas.host import ImageStatus
from tests.e2e.conftest import docker_only
from tests.support.docker_images import build_image, run_docker
from tests.support.image_registry import LOGIN, require_registry, run_registry
from tests.support.installation import IMAGES, RunningInstallation
from tests.support.job_checks import submit_job, wait_until_ended
from tests.support.wait import wait_for

NAME = "pulled"


@pytest.mark.long(25)
@docker_only
@pytest.mark.usefixtures("echo_image")
async def test_a_job_waits_for_the_image_and_runs_when_the_login_is_right(
    shared_idle: RunningInstallation, tmp_path: Path, docker_url: str
):
    require_registry()
    with run_registry(tmp_path / "registry", with_login=True) as registry:
        # With a label of its own it is another image than the echo one, so that Docker has to pull something.
        context = ("--label", "of=pulled", "--file", str(IMAGES / "echo" / "Dockerfile"), str(IMAGES))
        image = registry.push(docker_url, build_image(docker_url, "lamplighter-test-pulled", *context), "echo:1")
        folder = tmp_path / NAME
        shutil.copytree(IMAGES / "echo", folder)
        text = (folder / "endpoint.toml").read_text()
        named = text.replace('name = "echo"', f'name = "{NAME}"').replace('"lamplighter-echo"', f'"{image}"')
        (folder / "endpoint.toml").write_text(named)
        password = tmp_path / "password"
        password.write_text("wrong")
        settings = {registry.address: {"username": LOGIN.username, "password_file": str(password)}}
        await shared_idle.installation.start_runner(
            endpoints=(IMAGES / "echo", folder),
            LAMPLIGHTER_IMAGES__PULL="1",
            LAMPLIGHTER_IMAGES__RETRY_MOST_S="5",
            LAMPLIGHTER_REGISTRIES=json.dumps(settings),
        )

        async def refused() -> ImageStatus | None:
            row = await shared_idle.bus.heartbeats.get("gpu-1")
            images = row.value.images if row else ()
            return next((one for one in images if one.image == image and one.why is not None), None)

        status = await wait_for(refused, timeout_s=60)
        assert (status.state in {"missing", "pulling"}, status.endpoints) == (True, (NAME,))  # it is tried again
        assert f"{registry.address} refuses {image}" in (status.why or "")

        async def offered() -> bool:
            return f'"{NAME}"' in (await shared_idle.ann._http.get("/v1/endpoints")).text

        await wait_for(offered)
        job = await submit_job(shared_idle, endpoint=NAME, text="pulled")
        password.write_text(LOGIN.password)
        done = await wait_until_ended(shared_idle.ann, job.id)
        assert (done.status, done.output.data) == ("succeeded", {"text": "pulled"})
        assert done.program is not None
        assert done.program.image == image
        described = run_docker(docker_url, "image", "inspect", "--format", "{{json .RepoDigests}}", image).stdout
        assert f"{image.rpartition(':')[0]}@{done.program.image_digest}" in json.loads(described)
        run_docker(docker_url, "image", "rm", "--force", image)
