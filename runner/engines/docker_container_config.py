"""The create request of the Docker API for one container: everything that a job does not need is switched off. Pure.

The hardening has no measurable cost; the reason for each line stands beside it. The second half is the seccomp profile.
"""

import errno
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from runner.engines.launch import JOB_SUBDIRS, WRITABLE_SUBDIRS
from runner.engines.port import JOB_ENV, MIB, WARM_ENV, ContainerIdentity, ContainerSpec, GpuInjection

JOB_MOUNT = "/job"
CACHE_MOUNT = "/tmp/cache"  # noqa: S108 - inside the container, a tmpfs of its own
SHARED_MEMORY = "/dev/shm"  # noqa: S108
LABEL_PREFIX = "lamplighter."
CPU_PERIOD_US = 100_000
CAPABILITIES = ("gpu", "compute", "utility", "video")  # video: NVENC and NVDEC, which ffmpeg uses

# The root is read-only and /tmp is noexec: libraries that compile at run time (Triton, numba, torch) load from here.
CACHE_ENV = {
    "HOME": "/tmp",  # noqa: S108
    "XDG_CACHE_HOME": CACHE_MOUNT,
    "CUDA_CACHE_PATH": f"{CACHE_MOUNT}/cuda",
    "TRITON_CACHE_DIR": f"{CACHE_MOUNT}/triton",
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHE_MOUNT}/inductor",
    "TORCH_EXTENSIONS_DIR": f"{CACHE_MOUNT}/extensions",
    "NUMBA_CACHE_DIR": f"{CACHE_MOUNT}/numba",
    "MPLCONFIGDIR": f"{CACHE_MOUNT}/matplotlib",
}


def container_config(
    spec: ContainerSpec, user: str, injection: GpuInjection, profile: str | None, runtime: str | None = None
) -> dict[str, Any]:
    """Return the body of `POST /containers/create` for `spec`, run as `user` ("uid:gid").

    `profile` is the seccomp profile; None if the engine cannot use ours. `runtime` is the engine's name of the runtime
    that the spec asks for; None for the engine's default.
    """
    # Injection by a runtime would replace the runtime that the endpoint asks for, which is then asked for the devices.
    devices, env = _gpu_config(spec.gpus, "device_request" if runtime and injection == "runtime" else injection)
    folders = {name: mount.target for mount in spec.mounts for name in mount.variables}
    mps = spec.mps.env if spec.mps else {}
    variables = {**CACHE_ENV, JOB_ENV: JOB_MOUNT, **env, **mps, **folders, **spec.env}
    return {
        "Image": spec.image,
        "User": user,
        "Env": [f"{name}={value}" for name, value in variables.items()],
        "Labels": to_labels(spec.identity),
        **({"Entrypoint": [*spec.entrypoint_override], "Cmd": []} if spec.entrypoint_override else {}),
        "NetworkDisabled": True,
        "StopSignal": "SIGTERM",  # the contract's stop signal, whatever the image declares
        "HostConfig": {
            **_hardening(spec, profile),
            **_limits(spec),
            **devices,
            **({"Runtime": runtime} if runtime else {}),
            "Mounts": _mounts(spec),
        },
    }


def _hardening(spec: ContainerSpec, profile: str | None) -> dict[str, Any]:
    size = f"size={spec.limits.memory_mb}m"  # a tmpfs counts against the memory limit anyway
    return {
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "Tmpfs": {
            "/tmp": f"rw,noexec,nosuid,nodev,mode=1777,{size}",  # noqa: S108
            CACHE_MOUNT: f"rw,exec,nosuid,nodev,mode=1777,{size}",
        },
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", *([f"seccomp={profile}"] if profile is not None else [])],
        "IpcMode": "private",
        # With GPUs the engine chooses, and it chooses private on cgroup v2. On v1, NVIDIA's toolkit refuses the paths
        # that it finds in a private namespace ("relative path in mount prefix").
        **({} if spec.gpus else {"CgroupnsMode": "private"}),
        "Init": True,  # without it, a PID 1 that handles no signals runs until the end of the grace
        "OomScoreAdj": 500,  # the kernel kills jobs before the runner
        "LogConfig": {"Type": "local", "Config": {"max-size": "10m", "max-file": "2"}},
        "RestartPolicy": {"Name": "no"},
    }


def _limits(spec: ContainerSpec) -> dict[str, Any]:
    limits = spec.limits
    return {
        "Memory": limits.memory_mb * MIB,
        "MemorySwap": limits.memory_mb * MIB,  # equal: no swap
        "CpuPeriod": CPU_PERIOD_US,  # not NanoCpus, which refuses more CPUs than the host has
        "CpuQuota": int(limits.cpus * CPU_PERIOD_US),
        "PidsLimit": limits.pids,
        "ShmSize": limits.shm_mb * MIB,
        "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
    }


def _mounts(spec: ContainerSpec) -> list[dict[str, Any]]:
    """Mount /job and each of its folders separately: a job then cannot replace one with a link to somewhere else.

    /job itself is read-only unless a warm container must make its socket there.
    """
    writable = {*WRITABLE_SUBDIRS, *([""] if spec.env.get(WARM_ENV) == "1" else [])}
    job = [
        _bind(str(spec.job_dir / part), f"{JOB_MOUNT}/{part}".rstrip("/"), is_writable=part in writable)
        for part in ("", *JOB_SUBDIRS)
    ]
    # CUDA talks to the MPS server by the sockets in its pipe directory and by shared memory.
    mps = [_bind(path, path, is_writable=True) for path in ((spec.mps.pipe_dir, SHARED_MEMORY) if spec.mps else ())]
    return [*job, *mps, *(_bind(str(one.source), one.target, is_writable=one.is_writable) for one in spec.mounts)]


def _bind(source: str, target: str, *, is_writable: bool) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": not is_writable}


def _gpu_config(gpus: tuple[str, ...], injection: GpuInjection) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the HostConfig and the environment that give the container these GPUs and no other.

    CUDA's base images set NVIDIA_VISIBLE_DEVICES=all, which a default runtime `nvidia` obeys, so always override it.
    """
    listed = ",".join(gpus)
    if not gpus:
        return {}, {"NVIDIA_VISIBLE_DEVICES": "void"}
    modes: Mapping[GpuInjection, tuple[dict[str, Any], str]] = {
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
    devices, visible = modes[injection]
    return devices, {"NVIDIA_VISIBLE_DEVICES": visible, "NVIDIA_DRIVER_CAPABILITIES": ",".join(CAPABILITIES[1:])}


def to_labels(identity: ContainerIdentity) -> dict[str, str]:
    """Return the identity as container labels."""
    names = zip(ContainerIdentity.__struct_fields__, ContainerIdentity.__struct_encode_fields__, strict=True)
    return {f"{LABEL_PREFIX}{label}": str(getattr(identity, name)) for name, label in names}


def label_filters(installation: str, host: str) -> list[str]:
    """Return the label filters that find every container of this installation and host."""
    return [f"{LABEL_PREFIX}installation={installation}", f"{LABEL_PREFIX}host={host}"]


def identity_from_labels(found: Mapping[str, str]) -> ContainerIdentity:
    """Return the identity that `to_labels` wrote."""
    return ContainerIdentity(
        installation=found[f"{LABEL_PREFIX}installation"],
        host=found[f"{LABEL_PREFIX}host"],
        owner=found[f"{LABEL_PREFIX}owner"],
        job=found[f"{LABEL_PREFIX}job"],
        round=int(found[f"{LABEL_PREFIX}round"]),
        attempt=int(found[f"{LABEL_PREFIX}attempt"]),
        warm_dir=found.get(f"{LABEL_PREFIX}spare", ""),  # absent where an older runner started it
    )


# The seccomp profile: the system calls that a container may make.
#
# The table is our own. An engine's built-in profile depends on its version, and that of Docker 20.10 leaves sockets to
# the hypervisor (AF_VSOCK) and io_uring open. A call that is not listed is refused with EPERM. A call newer than all
# listed ones is refused with ENOSYS (runc does that), so that a C library falls back to an older call. Names are those
# of the kernel's tables for x86_64 and aarch64; a name that the engine's libseccomp does not know is ignored.
#
# Left out on purpose, because they can attack the kernel or other processes and no job needs them: io_uring_*;
# userfaultfd; keyctl, add_key and request_key (keys belong to no namespace); bpf and perf_event_open; ptrace,
# process_vm_*, kcmp, pidfd_getfd; mounts and namespaces (unshare, setns, and clone with such flags); modules, kexec,
# quotas, swap, setting of clocks; open_by_handle_at and name_to_handle_at; fanotify; NUMA policies, which need a
# capability.

ALLOW, REFUSE = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
EQUAL, MASKED = "SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"

# Purpose -> system calls.
ALLOWED_CALLS: Mapping[str, str] = {
    "read and write files": (
        "access cachestat close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 "
        "fallocate fcntl fdatasync flock fstat fstatfs fsync ftruncate lseek lstat newfstatat open openat openat2 "
        "pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readv sendfile splice stat statfs statx "
        "sync sync_file_range syncfs tee truncate umask vmsplice write writev"
    ),
    "work with folders and names": (
        "chdir chmod chown fchdir fchmod fchmodat fchmodat2 fchown fchownat futimesat getcwd getdents getdents64 "
        "lchown link linkat mkdir mkdirat mknod mknodat readlink readlinkat rename renameat renameat2 rmdir "
        "symlink symlinkat unlink unlinkat utime utimensat utimes"
    ),
    "read and write extended attributes": (
        "fgetxattr flistxattr fremovexattr fsetxattr getxattr lgetxattr listxattr llistxattr lremovexattr "
        "lsetxattr removexattr setxattr"
    ),
    "manage memory": (
        "brk madvise map_shadow_stack membarrier memfd_create mincore mlock mlock2 mlockall mmap mprotect mremap "
        "mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect"
    ),
    "start, wait for and end processes and threads": (
        "arch_prctl execve execveat exit exit_group fork get_robust_list getpgid getpgrp getpid getppid getsid "
        "gettid kill pidfd_open pidfd_send_signal prctl restart_syscall rseq set_robust_list set_tid_address "
        "setpgid setsid tgkill tkill vfork wait4 waitid"
    ),
    "wait for each other": "futex futex_requeue futex_wait futex_waitv futex_wake",
    "handle signals": (
        "pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend "
        "rt_sigtimedwait rt_tgsigqueueinfo sigaltstack signalfd signalfd4"
    ),
    "wait for files and sockets": (
        "epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 "
        "inotify_add_watch inotify_init inotify_init1 inotify_rm_watch poll ppoll pselect6 select"
    ),
    # GPUDirect Storage uses the predecessor of io_uring.
    "do file operations asynchronously": "io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit",
    "read clocks and use timers": (
        "alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time "
        "timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime "
        "timerfd_settime times"
    ),
    "choose processors and priorities, within their limits": (
        "getcpu getpriority getrlimit getrusage ioprio_get ioprio_set prlimit64 sched_get_priority_max "
        "sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler "
        "sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield "
        "setpriority setrlimit"
    ),
    "read identity and system data": (
        "capget getegid geteuid getgid getgroups getresgid getresuid getuid sysinfo uname"
    ),
    # Used by Docker's init and by entry programs of images.
    "drop privileges": (
        "capset landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp setfsgid setfsuid setgid "
        "setgroups setregid setresgid setresuid setreuid setuid"
    ),
    "communicate over existing pipes and sockets": (
        "accept accept4 bind connect getpeername getsockname getsockopt listen pipe pipe2 recvfrom recvmmsg "
        "recvmsg sendmmsg sendmsg sendto setsockopt shutdown"
    ),
    "share memory and queues inside the container": (
        "mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd "
        "semctl semget semop semtimedop shmat shmctl shmdt shmget"
    ),
    "read random numbers": "getrandom",
    "control devices that they were given": "ioctl",
}

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16  # linux/socket.h
NETLINK_ROUTE = 0  # lists network interfaces; linux/netlink.h
NAMESPACES = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET} of linux/sched.h
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, Linux32, each also with UNAME26; and the query

# The engine picks the one of its machine. No sub-architectures: 32-bit calls would bypass the conditions.
ARCHITECTURES = ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")


def _condition(index: int, value: int, operation: str = EQUAL, second: int = 0) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": second, "op": operation}


def _rule(name: str, *conditions: dict[str, Any]) -> dict[str, Any]:
    return {"names": [name], "action": ALLOW, "args": [*conditions]}


def _conditional_rules() -> list[dict[str, Any]]:
    """Return the calls that are allowed with some arguments. Several rules for one call are alternatives."""
    return [
        *(_rule("socket", _condition(0, family)) for family in (AF_UNIX, AF_INET, AF_INET6)),
        _rule("socket", _condition(0, AF_NETLINK), _condition(2, NETLINK_ROUTE)),
        _rule("socketpair", _condition(0, AF_UNIX)),
        _rule("clone", _condition(0, NAMESPACES, MASKED)),
        *(_rule("personality", _condition(0, value)) for value in PERSONALITIES),
        # Its flags are in memory, which a filter cannot read. C libraries then use clone.
        {"names": ["clone3"], "action": REFUSE, "errnoRet": errno.ENOSYS, "args": []},
    ]


@cache
def seccomp_profile() -> str:
    """Return the profile as the JSON that `SecurityOpt` takes after `seccomp=`."""
    names = sorted(name for calls in ALLOWED_CALLS.values() for name in calls.split())
    return json.dumps(
        {
            "defaultAction": REFUSE,
            "archMap": [{"architecture": name, "subArchitectures": []} for name in ARCHITECTURES],
            "syscalls": [{"names": names, "action": ALLOW, "args": []}, *_conditional_rules()],
        }
    )
