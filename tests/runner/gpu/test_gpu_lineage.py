"""Owner of a process, from texts of /proc on real hosts."""

import os
import subprocess

import pytest

from runner.gpu.process_owner import (
    OwnProcesses,
    is_foreign,
    is_own,
    parse_container_ids,
    parse_parent_pid,
    read_proc,
    trace_process,
)
from schemas.gpu import GpuProcess

A, B = "a1" * 32, "b2" * 32
GPU = "GPU-1"


@pytest.mark.parametrize(
    ("cgroup", "containers"),
    [
        (f"12:memory:/docker/{A}\n1:name=systemd:/docker/{A}\n", (A,)),
        (f"11:cpuset:/system.slice/docker-{A}.scope\n", (A,)),
        (f"0::/system.slice/docker-{A}.scope\n", (A,)),
        (f"0::/system.slice/docker-{A}.scope/init\n", (A,)),
        (f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{A}.scope\n", (A,)),
        (f"4:memory:/docker/{A}/docker/{B}\n", (A, B)),
        (f"0::/../{B}\n", (B,)),
        ("0::/user.slice/user-1000.slice/session-2.scope\n", ()),
        (f"0::/docker/{A[:63]}\n", ()),
        (f"0::/docker/{A}ff\n", ()),
        ("9:name=systemd:/\n8:pids:/\n", ()),
        ("", ()),
    ],
)
def test_containers_are_found_in_every_layout(cgroup: str, containers: tuple[str, ...]) -> None:
    assert parse_container_ids(cgroup) == containers


def test_a_name_with_brackets_does_not_hide_the_parent() -> None:
    assert parse_parent_pid("4242 (a) b (c) S 77 4242 4242 0 -1") == 77


def test_a_process_is_traced_to_its_container_and_ancestors() -> None:
    files = {
        (30, "cgroup"): f"0::/docker/{A}\n",
        (30, "stat"): "30 (python) S 20 30",
        (20, "stat"): "20 (sh) S 1 20",
        (1, "stat"): "1 (init) S 0 1",
    }
    process = trace_process(GpuProcess(30, used_mb=7), lambda pid, name: files.get((pid, name)))
    assert process == GpuProcess(30, used_mb=7, containers=(A,), ancestors=(20, 1))


def test_parents_in_a_circle_end() -> None:
    stat = {5: "5 (x) S 6 5", 6: "6 (y) S 5 6"}
    process = trace_process(GpuProcess(5), lambda pid, name: stat.get(pid))
    assert set(process.ancestors) == {5, 6}


def test_a_process_that_proc_does_not_show_is_not_seen() -> None:
    process = trace_process(GpuProcess(30), lambda pid, name: None)
    assert process == GpuProcess(30, seen=False)


def test_a_real_child_has_us_as_ancestor() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        process = trace_process(GpuProcess(child.pid), read_proc)
        child.communicate()
    assert process.seen
    assert process.ancestors[0] == os.getpid()
    assert is_own(process, OwnProcesses(pids=frozenset({os.getpid()})))


@pytest.mark.parametrize(
    ("process", "ours", "foreign"),
    [
        (GpuProcess(9, containers=(A,)), OwnProcesses(containers=frozenset({A})), False),
        (GpuProcess(9, containers=(B, A)), OwnProcesses(containers=frozenset({A})), False),
        (GpuProcess(9, containers=(B,)), OwnProcesses(containers=frozenset({A})), True),
        (GpuProcess(9), OwnProcesses(pids=frozenset({9})), False),
        (GpuProcess(9, ancestors=(8, 7)), OwnProcesses(pids=frozenset({7})), False),
        (GpuProcess(9, ancestors=(8, 1)), OwnProcesses(pids=frozenset({7})), True),
        (GpuProcess(9), OwnProcesses(), True),
        (GpuProcess(9, seen=False), OwnProcesses(), True),
        (GpuProcess(9, seen=False), OwnProcesses(gpus=frozenset({GPU})), False),
        (GpuProcess(9, seen=False), OwnProcesses(gpus=frozenset({"GPU-2"})), True),
        (GpuProcess(9), OwnProcesses(gpus=frozenset({GPU})), True),
    ],
)
def test_ours_and_foreign(process: GpuProcess, ours: OwnProcesses, foreign: bool) -> None:
    assert is_foreign(process, GPU, ours) is foreign
