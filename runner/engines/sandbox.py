"""What a container may do, as the Docker API's create request: everything off that a job does not need. Pure.

The hardening costs nothing measurable; why each line is there: research/runner.md 1.4 to 1.6, shortened beside it.
"""

from collections.abc import Mapping
from typing import Any, Literal

from runner.engines.folders import PARTS, WRITABLE
from runner.engines.port import JOB_ENV, WARM_ENV, Identity, Spec

Injection = Literal["cdi", "device_request", "runtime"]
Way = Injection | Literal["none"]  # what was found at start

JOB = "/job"
CACHE = "/tmp/cache"  # noqa: S108 - inside the container, a tmpfs of its own
LABEL = "lamplighter."
MIB = 1 << 20
CPU_PERIOD_US = 100_000
CAPABILITIES = ("gpu", "compute", "utility", "video")  # video: NVENC and NVDEC, which ffmpeg uses

# The root is read-only and /tmp is noexec: what compiles at run time (Triton, numba, torch) loads from here.
CACHE_ENV = {
    "HOME": "/tmp",  # noqa: S108
    "XDG_CACHE_HOME": CACHE,
    "CUDA_CACHE_PATH": f"{CACHE}/cuda",
    "TRITON_CACHE_DIR": f"{CACHE}/triton",
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHE}/inductor",
    "TORCH_EXTENSIONS_DIR": f"{CACHE}/extensions",
    "NUMBA_CACHE_DIR": f"{CACHE}/numba",
    "MPLCONFIGDIR": f"{CACHE}/matplotlib",
}


def container_config(spec: Spec, user: str, injection: Injection, profile: str | None) -> dict[str, Any]:
    """The body of `POST /containers/create` for `spec`, run as `user` ("uid:gid").

    `profile`: the seccomp profile, None where the engine cannot take ours.
    """
    devices, env = _gpus(spec.gpus, injection)
    given = {**CACHE_ENV, JOB_ENV: JOB, **env, **spec.env}
    return {
        "Image": spec.image,
        "User": user,
        "Env": [f"{name}={value}" for name, value in given.items()],
        "Labels": labels(spec.identity),
        **({"Entrypoint": [*spec.instead], "Cmd": []} if spec.instead else {}),
        "NetworkDisabled": True,
        "StopSignal": "SIGTERM",  # whatever the image says: the contract's word for "stop"
        "HostConfig": {**_hardening(spec, profile), **_limits(spec), **devices, "Mounts": _mounts(spec)},
    }


def _hardening(spec: Spec, profile: str | None) -> dict[str, Any]:
    size = f"size={spec.limits.memory_mb}m"  # a tmpfs counts against the memory limit anyway
    return {
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "Tmpfs": {
            "/tmp": f"rw,noexec,nosuid,nodev,mode=1777,{size}",  # noqa: S108
            CACHE: f"rw,exec,nosuid,nodev,mode=1777,{size}",
        },
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", *([f"seccomp={profile}"] if profile is not None else [])],
        "IpcMode": "private",
        # With cards it is the engine's choice, which is private on cgroup v2: on v1, NVIDIA's toolkit refuses the paths
        # that it finds in a namespace ("relative path in mount prefix").
        **({} if spec.gpus else {"CgroupnsMode": "private"}),
        "Init": True,  # without, a PID 1 that handles no signals waits out the whole grace
        "OomScoreAdj": 500,  # the kernel shall pick jobs before the runner
        "LogConfig": {"Type": "local", "Config": {"max-size": "10m", "max-file": "2"}},
        "RestartPolicy": {"Name": "no"},
    }


def _limits(spec: Spec) -> dict[str, Any]:
    limits = spec.limits
    return {
        "Memory": limits.memory_mb * MIB,
        "MemorySwap": limits.memory_mb * MIB,  # equal: no swap
        "CpuPeriod": CPU_PERIOD_US,  # not NanoCpus: that refuses more CPUs than the host has
        "CpuQuota": int(limits.cpus * CPU_PERIOD_US),
        "PidsLimit": limits.pids,
        "ShmSize": limits.shm_mb * MIB,
        "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
    }


def _mounts(spec: Spec) -> list[dict[str, Any]]:
    """/job and each of its folders a mount of its own: a job can then not swap one for a link to somewhere else.

    /job itself is read-only unless a warm container must make its socket there.
    """
    writable = {*WRITABLE, *([""] if spec.env.get(WARM_ENV) == "1" else [])}
    return [
        {
            "Type": "bind",
            "Source": str(spec.job_dir / part),
            "Target": f"{JOB}/{part}".rstrip("/"),
            "ReadOnly": part not in writable,
        }
        for part in ("", *PARTS)
    ]


def _gpus(gpus: tuple[str, ...], injection: Injection) -> tuple[dict[str, Any], dict[str, str]]:
    """What in HostConfig and in the environment gives the container these cards and no other.

    CUDA's base images say NVIDIA_VISIBLE_DEVICES=all, which a default runtime `nvidia` obeys: always say otherwise.
    """
    listed = ",".join(gpus)
    if not gpus:
        return {}, {"NVIDIA_VISIBLE_DEVICES": "void"}
    ways: Mapping[Injection, tuple[dict[str, Any], str]] = {
        "cdi": (
            {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={gpu}" for gpu in gpus]}]},
            "void",
        ),
        "device_request": (
            {"DeviceRequests": [{"Driver": "nvidia", "DeviceIDs": [*gpus], "Capabilities": [[*CAPABILITIES]]}]},
            listed,
        ),
        "runtime": ({"Runtime": "nvidia"}, listed),
    }
    devices, visible = ways[injection]
    return devices, {"NVIDIA_VISIBLE_DEVICES": visible, "NVIDIA_DRIVER_CAPABILITIES": ",".join(CAPABILITIES[1:])}


def labels(identity: Identity) -> dict[str, str]:
    """The identity as container labels."""
    return {f"{LABEL}{name}": str(getattr(identity, name)) for name in Identity.__struct_fields__}


def owned_by(installation: str, host: str) -> list[str]:
    """The label filters that find every container of this installation and host."""
    return [f"{LABEL}installation={installation}", f"{LABEL}host={host}"]


def identity_of(found: Mapping[str, str]) -> Identity:
    """The identity that `labels` wrote."""
    return Identity(
        installation=found[f"{LABEL}installation"],
        host=found[f"{LABEL}host"],
        owner=found[f"{LABEL}owner"],
        job=found[f"{LABEL}job"],
        round=int(found[f"{LABEL}round"]),
        attempt=int(found[f"{LABEL}attempt"]),
        spare=found.get(f"{LABEL}spare", ""),  # absent where an older runner started it
    )
