"""Processor time of processes and of the whole machine, from proc(5)."""

import os
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
IDLE_FIELDS = (3, 4)  # of the line `cpu` of /proc/stat: idle, and idle while a disk is awaited
ALL_FIELDS = 8  # the fields after them count time that is part of an earlier field


def process_cpu_s(pid: int) -> float:
    """Return the processor time of a process so far: utime and stime."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS_PER_S


def machine_cpu_s() -> float:
    """Return the time so far for which the processors of this machine were busy, all of them together."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1 : 1 + ALL_FIELDS]]
    return sum(number for place, number in enumerate(ticks) if place not in IDLE_FIELDS) / CLOCK_TICKS_PER_S


class ProcessorTimes(Struct, frozen=True):
    """Processor seconds by name of a process, and of the whole machine."""

    processes: Mapping[str, float]
    machine: float

    @classmethod
    def read(cls, pids: Mapping[str, int]) -> "ProcessorTimes":
        """Return the times so far of the processes, by their names."""
        return cls({name: process_cpu_s(pid) for name, pid in pids.items()}, machine_cpu_s())

    def since(self, before: "ProcessorTimes") -> "ProcessorTimes":
        """Return the times that have passed since `before`."""
        passed = {name: now - before.processes[name] for name, now in self.processes.items()}
        return ProcessorTimes(passed, self.machine - before.machine)

    def describe(self, took_s: float) -> str:
        """Describe how many cores were busy, and with what."""
        shares = [f"{name} {used / took_s:.2f}" for name, used in self.processes.items()]
        others = max(0.0, self.machine - sum(self.processes.values()))
        shares.append(f"others {others / took_s:.2f}")
        return f"{self.machine / took_s:.2f} of {os.cpu_count()} cores busy: {', '.join(shares)}"
