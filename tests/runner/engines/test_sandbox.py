"""The create request, spelled out by hand: a line that is lost here is a security hole."""

from pathlib import Path
from typing import Any

import pytest

from runner.engines.docker_container_config import container_config, identity_from_labels, label_filters, to_labels
from runner.engines.docker_replies import classify_start_failure, parse_engine_info, parse_exit, was_started
from runner.engines.port import ContainerIdentity, ContainerLimits, ContainerSpec, GpuInjection
from schemas.endpoint_parts import EngineRuntime

IDENTITY = ContainerIdentity(installation="i", host="h", owner="ann", job="j", round=2, attempt=3)


def spec(**changes: Any) -> ContainerSpec:
    limits = ContainerLimits(memory_mb=512, cpus=1.5, pids=99, shm_mb=128)
    return ContainerSpec(
        **{"identity": IDENTITY, "image": "x", "job_dir": Path("/data/j"), "limits": limits, **changes}
    )


def test_the_whole_request() -> None:
    config = container_config(spec(env={"A": "b"}), "1:2", "device_request", "{}")
    env = dict(pair.split("=", 1) for pair in config.pop("Env"))
    assert env["LAMPLIGHTER_JOB"] == "/job"
    assert env["A"] == "b"
    assert env["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert config == {
        "Image": "x",
        "User": "1:2",
        "NetworkDisabled": True,
        "StopSignal": "SIGTERM",
        "Labels": {
            "lamplighter.installation": "i",
            "lamplighter.host": "h",
            "lamplighter.owner": "ann",
            "lamplighter.job": "j",
            "lamplighter.round": "2",
            "lamplighter.attempt": "3",
            "lamplighter.spare": "",
        },
        "HostConfig": {
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "Tmpfs": {
                "/tmp": "rw,noexec,nosuid,nodev,mode=1777,size=512m",
                "/tmp/cache": "rw,exec,nosuid,nodev,mode=1777,size=512m",
            },
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges", "seccomp={}"],
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "Init": True,
            "OomScoreAdj": 500,
            "LogConfig": {"Type": "local", "Config": {"max-size": "10m", "max-file": "2"}},
            "RestartPolicy": {"Name": "no"},
            "Memory": 512 << 20,
            "MemorySwap": 512 << 20,
            "CpuPeriod": 100_000,
            "CpuQuota": 150_000,
            "PidsLimit": 99,
            "ShmSize": 128 << 20,
            "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
            "Mounts": [
                {"Type": "bind", "Source": "/data/j", "Target": "/job", "ReadOnly": True},
                {"Type": "bind", "Source": "/data/j/in", "Target": "/job/in", "ReadOnly": True},
                {"Type": "bind", "Source": "/data/j/out", "Target": "/job/out", "ReadOnly": False},
                {"Type": "bind", "Source": "/data/j/tmp", "Target": "/job/tmp", "ReadOnly": False},
            ],
        },
    }


def test_a_warm_one_may_write_its_folder_but_not_in() -> None:
    mounts = container_config(spec(env={"LAMPLIGHTER_WARM": "1"}), "1:2", "cdi", "{}")["HostConfig"]["Mounts"]
    assert {mount["Target"]: mount["ReadOnly"] for mount in mounts} == {
        "/job": False,
        "/job/in": True,
        "/job/out": False,
        "/job/tmp": False,
    }


GPU_REQUESTS: dict[GpuInjection, tuple[dict[str, Any], str]] = {
    "cdi": ({"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-a"]}]}, "void"),
    "device_request": (
        {
            "DeviceRequests": [
                {
                    "Driver": "nvidia",
                    "DeviceIDs": ["GPU-a"],
                    "Capabilities": [["gpu", "compute", "utility", "video"]],
                }
            ]
        },
        "GPU-a",
    ),
    "runtime": ({"Runtime": "nvidia"}, "GPU-a"),
}


@pytest.mark.parametrize("injection", GPU_REQUESTS)
def test_a_gpu_is_given_by_uuid(injection: GpuInjection) -> None:
    config = container_config(spec(gpus=("GPU-a",)), "1:2", injection, "{}")
    devices, visible = GPU_REQUESTS[injection]
    assert {name: config["HostConfig"].get(name) for name in devices} == devices
    assert f"NVIDIA_VISIBLE_DEVICES={visible}" in config["Env"]
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in config["Env"]


def test_labels_round_trip() -> None:
    assert identity_from_labels(to_labels(IDENTITY)) == IDENTITY
    assert label_filters("i", "h") == ["lamplighter.installation=i", "lamplighter.host=h"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("No such image: lamplighter-x:latest", "image_missing"),
        ('could not select device driver "" with capabilities: [[gpu]]', "gpu_unsupported"),
        ("Unknown runtime specified nvidia", "gpu_unsupported"),
        ("nvidia-container-cli: device error: GPU-a: unknown device", "gpu_unsupported"),
        ("no space left on device", "engine_error"),
    ],
)
def test_why_a_container_did_not_start(text: str, code: str) -> None:
    assert classify_start_failure(text) == code


def test_a_state_is_read_with_its_traps() -> None:
    state = {
        "ExitCode": 0,
        "OOMKilled": True,
        "StartedAt": "2026-11-21T18:39:39.276918123+08:00",
        "FinishedAt": "0001-01-01T00:00:00Z",
    }
    found = parse_exit(state)
    assert (found.code, found.oom_killed, found.finished_at) == (0, True, None)
    assert str(found.started_at) == "2026-11-21 10:39:39.276918+00:00"
    assert was_started(state)
    assert not was_started({**state, "StartedAt": "0001-01-01T00:00:00Z"})


def test_what_an_engine_lacks_is_reported() -> None:
    able: dict[str, Any] = {"LiveRestoreEnabled": True, "MemoryLimit": True, "SwapLimit": True, "PidsLimit": True}
    able |= {"ServerVersion": "28.2.2", "SecurityOptions": ["name=seccomp,profile=default"]}
    assert parse_engine_info(able).notes == ()
    assert parse_engine_info({**able, "LiveRestoreEnabled": False}).notes == (
        "the daemon stops containers when it restarts: set live-restore",
    )


def test_a_probe_runs_its_own_program() -> None:
    config = container_config(spec(entrypoint_override=("nvidia-smi", "-L")), "1:1", "cdi", "{}")
    assert (config["Entrypoint"], config["Cmd"]) == (["nvidia-smi", "-L"], [])


def test_runtimes_are_read_under_each_name_that_engines_use() -> None:
    registered = {
        "io.containerd.runc.v2": {"path": "runc"},
        "runsc": {"path": "/usr/bin/runsc", "runtimeArgs": ["--nvproxy"]},
        "kata-runtime": {"path": "/usr/bin/kata-runtime"},
        "nvidia": {"path": "nvidia-container-runtime"},
    }
    info = {"ServerVersion": "28.2.2", "Runtimes": registered, "DefaultRuntime": "nvidia"}
    found = parse_engine_info(info)
    assert found.runtimes == (
        EngineRuntime("runc", "io.containerd.runc.v2"),
        EngineRuntime("runsc", "runsc"),
        EngineRuntime("kata", "kata-runtime", has_gpu_support=False),
    )
    assert found.isolation == "runc"
    assert parse_engine_info({**info, "DefaultRuntime": "io.containerd.runsc.v1"}).isolation == "runsc"


def test_a_runtime_is_never_replaced_by_the_one_that_injects_gpus() -> None:
    host = container_config(spec(gpus=("GPU-a",), runtime="runsc"), "1:1", "runtime", "{}", "runsc")["HostConfig"]
    assert host["Runtime"] == "runsc"
    assert host["DeviceRequests"][0]["DeviceIDs"] == ["GPU-a"]
