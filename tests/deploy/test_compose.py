"""deploy/compose: the server comes up, a job arrives through Caddy and runs beside the runner's container."""

import json
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from lamplighter import Busy, Client, Unreachable
from lamplighter.api import Asset
from schemas.version import VERSION
from tests.support.compose import (
    FILES,
    ComposeProject,
    build_caddy_image,
    build_server_images,
    compose_command,
    copy_files,
    running_project,
)
from tests.support.docker_images import docker_url, echo_image
from tests.support.installation import ROOT
from tests.support.reserved_ports import reserve_ports
from tests.support.wait import wait_for_sync

__all__ = ["docker_url", "echo_image"]
START_TIMEOUT_S = 120.0
BROKER_USERS = ("ROUTE", "EDGE", "RUNNER", "READER")


def test_the_caddyfile_has_three_lines():
    assert len((FILES / "Caddyfile").read_text().splitlines()) == 3


def test_the_images_are_those_of_this_version():
    named = {tag for file in FILES.iterdir() for tag in re.findall(r"lamplighter-\w+:([\d.]+)", file.read_text())}
    assert named == {VERSION}


def test_every_variable_is_in_the_example_or_has_a_default():
    example = (FILES / "example.env").read_text()
    named = set(re.findall(r"^(?:# )?(\w+)=", example, re.MULTILINE))
    for file in FILES.glob("*.yaml"):
        for name, default in re.findall(r"\$\{(\w+)(:-[^}]*)?", file.read_text()):
            assert name in named or default, (file.name, name)


def test_the_gpu_file_adds_every_gpu_to_the_runner():
    argv = [*compose_command(), "-f", "runner.yaml", "-f", "gpu.yaml", "config"]
    done = subprocess.run(argv, cwd=FILES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    merged = {line.strip(" -") for line in done.stdout.splitlines()}
    assert {"driver: nvidia", "gpu", "utility", "pid: host"} <= merged


@pytest.fixture(scope="module")
def images(docker_url: str, echo_image: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("images")
    return build_server_images(folder) | {"LAMPLIGHTER_CADDY_IMAGE": build_caddy_image(docker_url, folder)}


@pytest.fixture
def server(docker_url: str, images: dict[str, str], tmp_path: Path) -> Iterator[ComposeProject]:
    """Bring the server up on free ports of loopback, without a domain."""
    with reserve_ports(4) as (http, https, tls, broker):
        environ = images | {
            "LAMPLIGHTER_DOMAIN": "127.0.0.1",
            "LAMPLIGHTER_SITE": "http://:80",
            "LAMPLIGHTER_HTTP_PORT": f"127.0.0.1:{http}",
            "LAMPLIGHTER_HTTPS_PORT": f"127.0.0.1:{https}",
            "LAMPLIGHTER_TLS_PORT": str(tls),
            "LAMPLIGHTER_BROKER_PORT": str(broker),
            "LAMPLIGHTER_DOCKER_SOCKET": docker_url.removeprefix("unix://"),
            "LAMPLIGHTER_RUNNER_DATA": str(tmp_path / "runner"),
        }
    folder = copy_files(tmp_path / "compose", environ)
    (folder / "images" / "echo").mkdir(parents=True)
    (folder / "images" / "echo" / "endpoint.toml").write_text((ROOT / "images/echo/endpoint.toml").read_text())
    (folder / "http").write_text(str(http))
    with running_project(ComposeProject(folder, docker_url, f"lt{secrets.token_hex(4)}", "compose.yaml")) as project:
        project.wait_until_healthy("edge")
        yield project


def in_edge(server: ComposeProject, *words: str) -> str:
    return server.run("exec", "-T", "edge", "lamplighter", *words, "--data", "/var/lib/lamplighter").strip()


@pytest.mark.docker
@pytest.mark.long(120)
@pytest.mark.timeout(400)
def test_a_job_runs_from_the_front_door_to_a_container_beside_the_runner(server: ComposeProject, docker_url: str):
    key = in_edge(server, "keys", "create", "app", "--json")
    host = f"gpu-{secrets.token_hex(4)}"  # other tests have containers of a gpu-1 on the same engine
    token = in_edge(server, "hosts", "add", host).split()[-1]
    memory = Path("/dev/shm") / host  # made by the engine
    with (server.folder / ".env").open("a") as file:
        file.write(f"LAMPLIGHTER_JOIN={token}\nLAMPLIGHTER_SECRETS_FOLDER={memory}\n")
    runner = ComposeProject(server.folder, docker_url, f"lt{secrets.token_hex(4)}", "runner.yaml")
    url = f"http://127.0.0.1:{(server.folder / 'http').read_text()}"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, memory)
        stack.enter_context(running_project(runner))
        client = stack.enter_context(Client(url, json.loads(key)["key"]))
        job = client.submit("echo", text="through Caddy", steps=30, seconds=2)
        wait_for_sync(lambda: siblings(runner, host), timeout_s=START_TIMEOUT_S)
        done = client.wait(job.id)
        assert done.output.data["text"] == "through Caddy"
        assert done.host == host
        runner.wait_until_healthy("runner")
        assert client._http.get(f"/v1/hosts/{host}").json()["secrets_on_disk"] is False
        runner.run("restart", "runner")  # it joins no second time, although the token is still there
        again = client.submit("echo", text="again", wait=True)
        assert again.output.data["text"] == "again"
    assert siblings(runner, host) == []
    assert runner.left() == []
    server.run("down", "-v")
    assert server.left() == []


def siblings(project: ComposeProject, host: str) -> list[str]:
    """Return the containers of the host's jobs on the engine, warm ones included."""
    rows = project.docker("ps", "-a", "--filter", f"label=lamplighter.host={host}", "--format", "{{.ID}}")
    return rows.split()


@pytest.mark.docker
@pytest.mark.long(20)
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("pid: host", "pid: ''"), "does not see the processes of the host: set pid: host"),
        ((":/var/run/docker.sock", ":/elsewhere.sock"), "/var/run/docker.sock is not in the runner's container"),
        ((":${LAMPLIGHTER_RUNNER_DATA:-/var/lib/lamplighter-runner}\n", ":/elsewhere\n"), "must have the same path"),
    ],
    ids=["pid", "socket", "path"],
)
def test_a_runner_s_container_says_what_it_lacks(
    changed: tuple[str, str], said: str, docker_url: str, images: dict[str, str], tmp_path: Path
):
    environ = images | {
        "LAMPLIGHTER_DOCKER_SOCKET": docker_url.removeprefix("unix://"),
        "LAMPLIGHTER_RUNNER_DATA": str(tmp_path / "runner"),
        "LAMPLIGHTER_SECRETS_FOLDER": str(tmp_path / "secrets"),
        "LAMPLIGHTER_IMAGES": str(ROOT / "images" / "echo"),
    }
    folder = copy_files(tmp_path / "compose", environ)
    text = (folder / "runner.yaml").read_text()
    assert changed[0] in text
    (folder / "runner.yaml").write_text(text.replace(*changed).replace("unless-stopped", '"no"'))
    project = ComposeProject(folder, docker_url, f"lt{secrets.token_hex(4)}", "runner.yaml")
    with running_project(project):
        container = project.container("runner") or project.docker("ps", "-aql").strip()
        assert project.docker("wait", container).strip() == "2"
        assert said in project.run("logs", "runner")
        doctor = project.run("run", "--rm", "runner", "doctor", "--json", exit_code=3)  # 3: no edge answers
        assert said.partition(":")[0] in doctor
    assert project.left() == []


@pytest.fixture
def cluster(docker_url: str, images: dict[str, str], tmp_path: Path) -> Iterator[ComposeProject]:
    """Bring cluster.yaml up on free ports of loopback."""
    with reserve_ports(5) as (http, https, *brokers):
        environ = images | {
            "LAMPLIGHTER_SITE": "http://:80",
            "LAMPLIGHTER_HTTP_PORT": f"127.0.0.1:{http}",
            "LAMPLIGHTER_HTTPS_PORT": f"127.0.0.1:{https}",
            "LAMPLIGHTER_NATS_CONF": str(ROOT / "nats.conf"),
            **{f"LAMPLIGHTER_N{number}_PORT": f"127.0.0.1:{port}" for number, port in enumerate(brokers, 1)},
            **{f"LAMPLIGHTER_{user}_PASSWORD": f"p{secrets.token_hex(8)}" for user in BROKER_USERS},
        }
    folder = copy_files(tmp_path / "compose", environ)
    (folder / "http").write_text(str(http))
    with running_project(ComposeProject(folder, docker_url, f"lt{secrets.token_hex(4)}", "cluster.yaml")) as project:
        for edge in ("edge-1", "edge-2"):
            project.wait_until_healthy(edge)
        yield project


@pytest.mark.docker
@pytest.mark.long(45)
@pytest.mark.timeout(400)
def test_a_cluster_stores_files_while_an_edge_or_a_broker_is_dead(cluster: ComposeProject, tmp_path: Path):
    (key,) = re.findall(r"first admin key \(shown once\): (\S+)", cluster.run("logs", "edge-1", "edge-2"))
    url = f"http://127.0.0.1:{(cluster.folder / 'http').read_text()}"
    with Client(url, key, cache=tmp_path / "digests.json") as client:
        for dead in ("edge-1", "n1"):
            cluster.run("kill", dead)
            stored = wait_for_sync(partial(stored_file, client, tmp_path / dead), timeout_s=START_TIMEOUT_S)
            cluster.run("start", dead)
            cluster.wait_until_healthy(dead)
            assert client._http.get(stored.url).content == dead.encode()
    cluster.run("down", "-v")
    assert cluster.left() == []


def stored_file(client: Client, file: Path) -> Asset | None:
    """Upload a file that contains its name; return None if no edge can store it at present."""
    file.write_text(file.name)
    try:
        return client.upload(file)
    except (Busy, Unreachable):
        return None
