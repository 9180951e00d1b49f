"""A runner in a container: each thing that it lacks is named, with what to add."""

import os
import socket
from pathlib import Path

import pytest

from runner.engines import selection
from runner.engines.selection import check_container, check_socket, has_dockerd, own_container_id

CONTAINER = "0123456789abcdef" * 4
DATA = Path("/var/lib/lamplighter/runner")
HOST_PIDS = {"PidMode": "host"}


def mount(source: str, destination: str) -> dict[str, str]:
    return {"Source": source, "Destination": destination}


@pytest.mark.parametrize("root", ["/var/lib/docker", "/data/docker"])
def test_the_container_is_known_by_its_mounts(tmp_path: Path, root: str):
    file = tmp_path / "mountinfo"
    line = f"1 2 8:1 {root}/containers/{CONTAINER}/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n"
    file.write_text(f"1 2 0:1 / / rw - overlay overlay rw\n{line}")
    assert own_container_id(file) == CONTAINER


def test_outside_of_a_container_there_is_none(tmp_path: Path):
    (tmp_path / "mountinfo").write_text("1 2 8:1 / / rw - ext4 /dev/sda1 rw\n")
    assert own_container_id(tmp_path / "mountinfo") is None
    assert own_container_id(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("mounts", "said"),
    [
        ([], "is not a folder of the host: add the volume /var/lib/lamplighter/runner:/var/lib/lamplighter/runner"),
        ([mount("/srv/runner", str(DATA))], "where it is /srv/runner there"),
        (
            [mount("/var/lib/docker/volumes/x/_data", "/var/lib")],
            "is /var/lib/docker/volumes/x/_data/lamplighter/runner",
        ),
        ([mount("/var", "/var"), mount("/srv/runner", str(DATA))], "is /srv/runner there"),  # the inner mount counts
    ],
)
def test_a_data_folder_with_another_path_on_the_host_is_named(mounts: list[dict[str, str]], said: str):
    (fault,) = check_container({"Mounts": mounts, "HostConfig": HOST_PIDS}, DATA)
    assert said in str(fault)


@pytest.mark.parametrize("place", [str(DATA), "/var/lib", "/"])
def test_a_folder_with_the_same_path_lacks_nothing(place: str):
    assert check_container({"Mounts": [mount(place, place)], "HostConfig": HOST_PIDS}, DATA) == []


@pytest.mark.parametrize("mode", ["", "container:x", None])
def test_a_container_with_processes_of_its_own_is_named(mode: str | None):
    inspected = {"Mounts": [mount(str(DATA), str(DATA))], "HostConfig": {"PidMode": mode}}
    (fault,) = check_container(inspected, DATA)
    assert str(fault) == "the runner's container does not see the processes of the host: set pid: host for it"


def test_the_socket_is_checked_before_the_engine_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "docker.sock"
    missing = check_socket(f"unix://{path}", has_own_engine=False)
    assert str(missing) == (
        f"the Docker socket {path} is not in the runner's container: add the volume {path}:{path} to it"
    )
    path.mkdir()  # what Docker makes of a volume whose source is missing
    folder = check_socket(f"unix://{path}", has_own_engine=False)
    assert "is not a socket" in str(folder)
    path.rmdir()
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # a unix socket's name has at most 107 bytes
        listening.bind("docker.sock")
        assert check_socket(f"unix://{path}", has_own_engine=False) is None
        monkeypatch.setattr(os, "access", lambda *_: False)
        assert 'set user: "0:0", or group_add' in str(check_socket(f"unix://{path}", has_own_engine=False))


def test_a_container_with_an_engine_of_its_own_waits_for_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert check_socket(f"unix://{tmp_path}/docker.sock", has_own_engine=True) is None
    monkeypatch.setattr(selection, "DAEMON_FOLDERS", (str(tmp_path / "sbin"),))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert not has_dockerd()
    (tmp_path / "sbin").mkdir()
    (tmp_path / "sbin" / "dockerd").touch(mode=0o755)
    assert has_dockerd()


def test_an_engine_in_the_network_has_no_socket_here():
    assert check_socket("tcp://127.0.0.1:2375", has_own_engine=False) is None
