"""What a container may do, as the Docker API's create request: everything off that a job does not need. Pure.

The hardening costs nothing measurable; why each line is there: research/runner.md 1.4 to 1.6, shortened beside it.
"""

import errno
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from runner.engines.launch import JOB_SUBDIRS, WRITABLE_SUBDIRS
from runner.engines.port import JOB_ENV, WARM_ENV, ContainerIdentity, ContainerSpec, GpuInjection

JOB_MOUNT = "/job"
CACHE_MOUNT = "/tmp/cache"  # noqa: S108 - inside the container, a tmpfs of its own
LABEL_PREFIX = "lamplighter."
MIB = 1 << 20
CPU_PERIOD_US = 100_000
CAPABILITIES = ("gpu", "compute", "utility", "video")  # video: NVENC and NVDEC, which ffmpeg uses

# The root is read-only and /tmp is noexec: what compiles at run time (Triton, numba, torch) loads from here.
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


def container_config(spec: ContainerSpec, user: str, injection: GpuInjection, profile: str | None) -> dict[str, Any]:
    """The body of `POST /containers/create` for `spec`, run as `user` ("uid:gid").

    `profile`: the seccomp profile, None where the engine cannot take ours.
    """
    devices, env = _gpu_config(spec.gpus, injection)
    given = {**CACHE_ENV, JOB_ENV: JOB_MOUNT, **env, **spec.env}
    return {
        "Image": spec.image,
        "User": user,
        "Env": [f"{name}={value}" for name, value in given.items()],
        "Labels": to_labels(spec.identity),
        **({"Entrypoint": [*spec.instead], "Cmd": []} if spec.instead else {}),
        "NetworkDisabled": True,
        "StopSignal": "SIGTERM",  # whatever the image says: the contract's word for "stop"
        "HostConfig": {**_hardening(spec, profile), **_limits(spec), **devices, "Mounts": _mounts(spec)},
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
        # With cards it is the engine's choice, which is private on cgroup v2: on v1, NVIDIA's toolkit refuses the paths
        # that it finds in a namespace ("relative path in mount prefix").
        **({} if spec.gpus else {"CgroupnsMode": "private"}),
        "Init": True,  # without, a PID 1 that handles no signals waits out the whole grace
        "OomScoreAdj": 500,  # the kernel shall pick jobs before the runner
        "LogConfig": {"Type": "local", "Config": {"max-size": "10m", "max-file": "2"}},
        "RestartPolicy": {"Name": "no"},
    }


def _limits(spec: ContainerSpec) -> dict[str, Any]:
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


def _mounts(spec: ContainerSpec) -> list[dict[str, Any]]:
    """/job and each of its folders a mount of its own: a job can then not swap one for a link to somewhere else.

    /job itself is read-only unless a warm container must make its socket there.
    """
    writable = {*WRITABLE_SUBDIRS, *([""] if spec.env.get(WARM_ENV) == "1" else [])}
    return [
        {
            "Type": "bind",
            "Source": str(spec.job_dir / part),
            "Target": f"{JOB_MOUNT}/{part}".rstrip("/"),
            "ReadOnly": part not in writable,
        }
        for part in ("", *JOB_SUBDIRS)
    ]


def _gpu_config(gpus: tuple[str, ...], injection: GpuInjection) -> tuple[dict[str, Any], dict[str, str]]:
    """What in HostConfig and in the environment gives the container these cards and no other.

    CUDA's base images say NVIDIA_VISIBLE_DEVICES=all, which a default runtime `nvidia` obeys: always say otherwise.
    """
    listed = ",".join(gpus)
    if not gpus:
        return {}, {"NVIDIA_VISIBLE_DEVICES": "void"}
    ways: Mapping[GpuInjection, tuple[dict[str, Any], str]] = {
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


def to_labels(identity: ContainerIdentity) -> dict[str, str]:
    """The identity as container labels."""
    return {f"{LABEL_PREFIX}{name}": str(getattr(identity, name)) for name in ContainerIdentity.__struct_fields__}


def label_filters(installation: str, host: str) -> list[str]:
    """The label filters that find every container of this installation and host."""
    return [f"{LABEL_PREFIX}installation={installation}", f"{LABEL_PREFIX}host={host}"]


def identity_from_labels(found: Mapping[str, str]) -> ContainerIdentity:
    """The identity that `labels` wrote."""
    return ContainerIdentity(
        installation=found[f"{LABEL_PREFIX}installation"],
        host=found[f"{LABEL_PREFIX}host"],
        owner=found[f"{LABEL_PREFIX}owner"],
        job=found[f"{LABEL_PREFIX}job"],
        round=int(found[f"{LABEL_PREFIX}round"]),
        attempt=int(found[f"{LABEL_PREFIX}attempt"]),
        spare=found.get(f"{LABEL_PREFIX}spare", ""),  # absent where an older runner started it
    )


# MERGED runner/engines/seccomp.py: The system calls that a job's container may make, as the profile that Docker's API
# takes. Pure. / A table of our own: an engine's built-in profile depends on its age, and the one of Docker 20.10
# leaves sockets to the / hypervisor (AF_VSOCK) and io_uring open. What is not listed is refused with EPERM. What is
# newer than all that is listed / is refused with ENOSYS (runc does that), so that a C library takes an older call.
# Names are those of the kernel's tables / for x86_64 and aarch64; a name that the engine's libseccomp does not know
# is passed over. / Left out on purpose, as ways to attack the kernel or other processes that no job needs:
# io_uring_*; userfaultfd; keyctl, / add_key and request_key (keys belong to no namespace); bpf and perf_event_open;
# ptrace, process_vm_*, kcmp, pidfd_getfd; / mounts and namespaces (unshare, setns, and clone with such flags);
# modules, kexec, quotas, swap, the setting of clocks; / open_by_handle_at and name_to_handle_at; fanotify; NUMA
# policies, which need a capability.


ALLOW, REFUSE = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
EQUAL, MASKED = "SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"

# What a job does -> the calls for it.
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
    "have memory": (
        "brk madvise map_shadow_stack membarrier memfd_create mincore mlock mlock2 mlockall mmap mprotect mremap "
        "mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect"
    ),
    "start, wait for and end processes and threads": (
        "arch_prctl execve execveat exit exit_group fork get_robust_list getpgid getpgrp getpid getppid getsid "
        "gettid kill pidfd_open pidfd_send_signal prctl restart_syscall rseq set_robust_list set_tid_address "
        "setpgid setsid tgkill tkill vfork wait4 waitid"
    ),
    "wait for each other": "futex futex_requeue futex_wait futex_waitv futex_wake",
    "take signals": (
        "pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend "
        "rt_sigtimedwait rt_tgsigqueueinfo sigaltstack signalfd signalfd4"
    ),
    "wait for files and sockets": (
        "epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 "
        "inotify_add_watch inotify_init inotify_init1 inotify_rm_watch poll ppoll pselect6 select"
    ),
    # GPUDirect Storage does, by what came before io_uring.
    "do file operations beside their work": "io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit",
    "know and wait for the time": (
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
    "know who and where they are": "capget getegid geteuid getgid getgroups getresgid getresuid getuid sysinfo uname",
    # Docker's init does, and entry programs of images.
    "give rights up": (
        "capset landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp setfsgid setfsuid setgid "
        "setgroups setregid setresgid setresuid setreuid setuid"
    ),
    "talk over pipes and sockets that are there": (
        "accept accept4 bind connect getpeername getsockname getsockopt listen pipe pipe2 recvfrom recvmmsg "
        "recvmsg sendmmsg sendmsg sendto setsockopt shutdown"
    ),
    "share memory and queues inside the container": (
        "mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd "
        "semctl semget semop semtimedop shmat shmctl shmdt shmget"
    ),
    "draw random numbers": "getrandom",
    "speak to devices that they were given": "ioctl",
}

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16  # linux/socket.h
NETLINK_ROUTE = 0  # what lists network interfaces; linux/netlink.h
NAMESPACES = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET} of linux/sched.h
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, Linux32, each with UNAME26; and the question

# The engine fits the first to its machine. No second architecture: 32-bit calls would get round the conditions.
ARCHITECTURES = ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")


def _condition(index: int, value: int, operation: str = EQUAL, second: int = 0) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": second, "op": operation}


def _rule(name: str, *conditions: dict[str, Any]) -> dict[str, Any]:
    return {"names": [name], "action": ALLOW, "args": [*conditions]}


def _conditional_rules() -> list[dict[str, Any]]:
    """Calls that are allowed with some arguments. Several rules for one call are alternatives."""
    return [
        *(_rule("socket", _condition(0, family)) for family in (AF_UNIX, AF_INET, AF_INET6)),
        _rule("socket", _condition(0, AF_NETLINK), _condition(2, NETLINK_ROUTE)),
        _rule("socketpair", _condition(0, AF_UNIX)),
        _rule("clone", _condition(0, NAMESPACES, MASKED)),
        *(_rule("personality", _condition(0, value)) for value in PERSONALITIES),
        # Its flags lie in memory, where a filter cannot look: C libraries then take clone.
        {"names": ["clone3"], "action": REFUSE, "errnoRet": errno.ENOSYS, "args": []},
    ]


@cache
def seccomp_profile() -> str:
    """The profile, as the JSON that `SecurityOpt` takes after "seccomp="."""
    names = sorted(name for calls in ALLOWED_CALLS.values() for name in calls.split())
    return json.dumps(
        {
            "defaultAction": REFUSE,
            "archMap": [{"architecture": name, "subArchitectures": []} for name in ARCHITECTURES],
            "syscalls": [{"names": names, "action": ALLOW, "args": []}, *_conditional_rules()],
        }
    )
