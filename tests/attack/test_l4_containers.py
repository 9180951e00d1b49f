"""L4: a job in a container asks the kernel for what no job needs: the hypervisor, io_uring, keys, namespaces."""

import errno
import json
import platform
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.docker_container_config import ALLOWED_CALLS, container_config, seccomp_profile
from runner.engines.docker_replies import parse_engine_info, supports_profile
from runner.engines.port import ContainerIdentity, ContainerLimits, ContainerSpec

REFUSED = {errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT}

# Calls that no job is to reach, and their numbers on x86_64 and aarch64 (those above 423 are the same everywhere).
CLOSED: Mapping[str, tuple[int, int]] = {
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "quotactl": (179, 60),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "syslog": (103, 116),
    "move_pages": (279, 239),
    "clone3": (435, 435),
}
FAMILIES = {
    "AF_VSOCK": 40,
    "AF_ALG": 38,
    "AF_PACKET": 17,
    "AF_KEY": 15,
    "AF_BLUETOOTH": 31,
    "AF_TIPC": 30,
    "AF_CAN": 29,
}

ASK = """
import ctypes, json, os, socket, subprocess, sys, threading
kernel = ctypes.CDLL(None, use_errno=True).syscall
def asked(number, *words):
    ctypes.set_errno(0)
    answer = kernel(ctypes.c_long(number), *(ctypes.c_long(word) for word in (*words, 0, 0, 0, 0, 0, 0)[:6]))
    return ctypes.get_errno() if answer == -1 else 0
def refused(*words):
    try: socket.socket(*words).close()
    except OSError as error: return error.errno
    return 0
"""


@pytest.fixture
async def engine(docker_url: str) -> AsyncIterator[DockerEngine]:
    async with DockerEngine(DockerSettings(base_url=docker_url)) as engine:
        yield engine


async def said(engine: DockerEngine, image: str, folder: Path, code: str) -> Any:
    """Return the JSON that `code` prints in a job container."""
    mine = ContainerIdentity(installation="attack", host=folder.name, owner="ann", job="j", round=1, attempt=1)
    limits = ContainerLimits(memory_mb=128, cpus=1.0)
    argv = ("python3", "-c", ASK + code)
    spec = ContainerSpec(identity=mine, image=image, job_dir=folder / "job", limits=limits, entrypoint_override=argv)
    handle = await engine.start(spec)
    try:
        with anyio.fail_after(60):
            told = b"".join([chunk.data async for chunk in engine.output(handle, None)])
        return json.loads(told)
    finally:
        await engine.remove(handle)


@pytest.mark.docker
async def test_calls_that_no_job_needs_are_refused(engine: DockerEngine, echo_image: str, tmp_path: Path) -> None:
    place = ("x86_64", "aarch64").index(platform.machine())
    numbers = {name: both[place] for name, both in CLOSED.items()}
    answers = await said(
        engine, echo_image, tmp_path, f"print(json.dumps({{n: asked(c) for n, c in {numbers}.items()}}))"
    )
    assert {name: answer for name, answer in answers.items() if answer not in REFUSED} == {}
    assert answers["clone3"] == errno.ENOSYS


@pytest.mark.docker
async def test_no_socket_leads_to_the_hypervisor_or_into_the_kernel(
    engine: DockerEngine, echo_image: str, tmp_path: Path
) -> None:
    code = f"print(json.dumps({{n: refused(f, socket.SOCK_DGRAM) for n, f in {FAMILIES}.items()}}))"
    answers = await said(engine, echo_image, tmp_path, code)
    assert {name: answer for name, answer in answers.items() if answer not in REFUSED} == {}


@pytest.mark.docker
async def test_namespaces_cannot_be_made_by_any_call(engine: DockerEngine, echo_image: str, tmp_path: Path) -> None:
    """A user namespace would give a job all capabilities in it, which exposes most kernel bugs."""
    clone = {"x86_64": 56, "aarch64": 220}[platform.machine()]
    flags = (0x10000000, 0x40000000, 0x00020000, 0x10000000 | 0x00020000)
    answers = await said(engine, echo_image, tmp_path, f"print(json.dumps([asked({clone}, f | 17) for f in {flags}]))")
    assert answers == [errno.EPERM] * len(flags)


@pytest.mark.docker
@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86_64 has a second table of calls")
async def test_the_calls_of_32_bit_programs_are_no_way_round(
    engine: DockerEngine, echo_image: str, tmp_path: Path
) -> None:
    """32-bit system calls have other numbers, and socketcall has its arguments in memory."""
    program = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex('b814000000cd80c3'))  # getpid, by int 0x80
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))())
"""
    code = f"print(json.dumps(subprocess.run([sys.executable, '-c', {program!r}], capture_output=True).returncode))"
    assert await said(engine, echo_image, tmp_path, code) < 0  # ended by a signal


@pytest.mark.docker
async def test_what_jobs_need_works(engine: DockerEngine, echo_image: str, tmp_path: Path) -> None:
    """Normal programs work: threads, processes, local sockets, shared memory, event loops and files."""
    code = """
import asyncio, concurrent.futures, mmap, multiprocessing, multiprocessing.shared_memory, os, tempfile, time
def square(n): return n * n
with concurrent.futures.ThreadPoolExecutor(4) as threads: threaded = sum(threads.map(square, range(10)))
with multiprocessing.get_context('fork').Pool(2) as pool: pooled = sum(pool.map(square, range(10)))
shared = multiprocessing.shared_memory.SharedMemory(create=True, size=4096); shared.close(); shared.unlink()
async def loop():
    server = await asyncio.start_server(lambda r, w: w.close(), '127.0.0.1', 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await reader.read(); writer.close(); server.close()
    child = await asyncio.create_subprocess_exec('true')
    return await child.wait()
os.mkfifo('/job/tmp/fifo'); os.symlink('fifo', '/job/tmp/link'); os.rename('/job/tmp/link', '/job/tmp/other')
os.memfd_create('x'); os.sched_setaffinity(0, os.sched_getaffinity(0)); os.nice(1); os.sync()
print(json.dumps({
    'threads': threaded, 'processes': pooled, 'loop': asyncio.run(loop()),
    'sockets': [refused(f, t) for f, t in ((1, 1), (2, 1), (2, 2), (10, 1))],
    'interfaces': [name for _, name in socket.if_nameindex()],
    'netlink': [refused(16, 3, 0), refused(16, 3, 9)],
    'pair': len(socket.socketpair()),
}))
"""
    answers = await said(engine, echo_image, tmp_path, code)
    assert answers == {
        "threads": 285,
        "processes": 285,
        "loop": 0,
        "sockets": [0, 0, 0, 0],
        "interfaces": ["lo"],
        "netlink": [0, errno.EPERM],  # routes are told; the kernel's audit is not
        "pair": 2,
    }


@pytest.mark.docker
async def test_a_container_sees_no_control_groups_but_its_own(
    engine: DockerEngine, echo_image: str, tmp_path: Path
) -> None:
    code = "print(json.dumps([line.rstrip().split(':')[2] for line in open('/proc/self/cgroup')]))"
    assert set(await said(engine, echo_image, tmp_path, code)) == {"/"}


def test_nothing_closed_is_in_the_table() -> None:
    names = [name for calls in ALLOWED_CALLS.values() for name in calls.split()]
    assert len(names) == len(set(names))
    assert not set(names) & (CLOSED.keys() | {"socket", "socketpair", "clone", "personality"})


def test_the_profile_is_what_docker_reads() -> None:
    made = json.loads(seccomp_profile())
    assert made["defaultAction"] == "SCMP_ACT_ERRNO"
    assert {name["architecture"]: name["subArchitectures"] for name in made["archMap"]} == {
        "SCMP_ARCH_X86_64": [],
        "SCMP_ARCH_AARCH64": [],
    }
    unconditional = [rule for rule in made["syscalls"] if not rule["args"]]
    assert [rule["names"] for rule in unconditional[1:]] == [["clone3"]]
    assert {"execve", "read", "futex"} <= set(unconditional[0]["names"])
    sockets = [rule["args"][0]["value"] for rule in made["syscalls"] if rule["names"] == ["socket"]]
    assert sockets == [1, 2, 10, 16]


ABLE = {"LiveRestoreEnabled": True, "MemoryLimit": True, "SwapLimit": True, "PidsLimit": True}
FILTERS = ["name=seccomp,profile=default"]


@pytest.mark.parametrize(
    ("version", "options", "takes", "note"),
    [
        ("20.10.24+dfsg1", FILTERS, True, None),
        ("28.2.2", [*FILTERS, "name=cgroupns"], True, None),
        ("20.10.10", FILTERS, True, None),
        ("dev", FILTERS, True, None),
        ("20.10.9", FILTERS, False, "older than 20.10.10"),
        ("19.03.15", FILTERS, False, "older than 20.10.10"),
        ("28.2.2", ["name=rootless"], False, "no seccomp"),
        ("28.2.2", None, False, "no seccomp"),
    ],
)
def test_an_engine_that_cannot_take_the_profile_says_so(
    version: str, options: list[str] | None, takes: bool, note: str | None
) -> None:
    info = {"ServerVersion": version, "SecurityOptions": options, **ABLE}
    assert supports_profile(info) is takes
    notes = parse_engine_info(info).notes
    assert len(notes) == (0 if note is None else 1)
    assert all(note in one for one in notes if note)


def test_an_engine_without_the_profile_is_not_sent_it(tmp_path: Path) -> None:
    mine = ContainerIdentity(installation="i", host="h")
    spec = ContainerSpec(identity=mine, image="x", job_dir=tmp_path, limits=ContainerLimits(1, 1.0))
    host = container_config(spec, "1:1", "cdi", None)["HostConfig"]
    assert host["SecurityOpt"] == ["no-new-privileges"]


def test_a_container_with_gpus_has_the_engine_s_own_namespace(tmp_path: Path) -> None:
    mine = ContainerIdentity(installation="i", host="h")
    spec = ContainerSpec(identity=mine, image="x", job_dir=tmp_path, limits=ContainerLimits(1, 1.0), gpus=("GPU-a",))
    assert "CgroupnsMode" not in container_config(spec, "1:1", "cdi", None)["HostConfig"]
