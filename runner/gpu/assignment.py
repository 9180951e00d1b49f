"""The GPUs that a scheduler, or the operator, has assigned to this runner. The rules are pure.

Slurm and Kubernetes tell a job its GPUs by variables. Where they do not confine devices, NVML still lists all GPUs of
the machine. So the runner counts, and gives to its jobs, only the GPUs that these variables name.

A number is a position in NVML's list. CUDA_VISIBLE_DEVICES and GPU_DEVICE_ORDINAL count the GPUs that this process can
open. SLURM_JOB_GPUS and NVIDIA_VISIBLE_DEVICES count all GPUs of the machine, also where a process can open only some.
"""

import re
from collections.abc import Mapping, Sequence

from msgspec import Struct

from schemas.gpu import GpuSample, LostGpu

AUTO, ALL = "auto", "all"
SLURM_JOB_VARIABLE = "SLURM_JOB_ID"
# In the order in which they are read. CUDA's own comes first: it is right with and without confined devices.
CONFINED_VARIABLES = ("CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
MACHINE_VARIABLES = ("SLURM_JOB_GPUS", "NVIDIA_VISIBLE_DEVICES")
NO_GPU_WORDS = frozenset({"", "-1", "none", "NoDevFiles"})
# The container runtime has confined the devices already, by CDI or by a folder of names: the value restricts nothing.
_UNRESTRICTED = re.compile(r"(all|void|/.*|.*/.*=.*)?")
_NAME = re.compile(r"\d+(:\d+)?|(GPU|MIG)-[0-9A-Za-z/-]+")


class AssignmentInvalid(Exception):
    """The assigned GPUs cannot be used; the message says which variable is wrong and what to do."""


class GpuAssignment(Struct, frozen=True):
    """GPUs by number, `GPU:SLICE`, or the beginning of a UUID; no names: no GPU.

    `source` says where they are named. `counts_machine`: numbers count all GPUs of the machine.
    """

    source: str
    names: tuple[str, ...] = ()
    counts_machine: bool = False


def read_assignment(setting: str, environ: Mapping[str, str]) -> GpuAssignment | None:
    """Return the assigned GPUs; None where all are. `setting`: `auto`, `all`, or the GPUs. Raises AssignmentInvalid."""
    if setting == ALL:
        return None
    if setting != AUTO:
        return _parse("gpu.visible", setting)
    for variable in (*CONFINED_VARIABLES, *MACHINE_VARIABLES):
        value = environ.get(variable)
        if value is None or (variable == "NVIDIA_VISIBLE_DEVICES" and _UNRESTRICTED.fullmatch(value.strip())):
            continue
        return _parse(variable, value, counts_machine=variable in MACHINE_VARIABLES)
    if environ.get(SLURM_JOB_VARIABLE):
        return GpuAssignment(f"Slurm gave job {environ[SLURM_JOB_VARIABLE]} no GPU")
    return None


def _parse(name: str, value: str, *, counts_machine: bool = False) -> GpuAssignment:
    source, value = f"{name}={value}", value.strip()
    if value in NO_GPU_WORDS:
        return GpuAssignment(source)
    names = tuple(dict.fromkeys(part.strip() for part in value.split(",")))
    for part in names:
        if not _NAME.fullmatch(part):
            raise AssignmentInvalid(
                f'{source}: "{part}" is not a GPU: give numbers, as in 0,2, or UUIDs, as `nvidia-smi -L` prints them'
            )
    return GpuAssignment(source, names, counts_machine)


class AssignedGpus:
    """Selects the assigned GPUs from each reading.

    The GPU of a name is decided at the first reading that lists it: numbers move when a GPU falls off the bus.
    """

    def __init__(self, assignment: GpuAssignment) -> None:
        self.assignment = assignment
        self.unknown: tuple[LostGpu, ...] = ()
        """The names that fit no GPU of the last reading, and of none before."""
        self._uuids: dict[str, frozenset[str]] = {}
        self._is_confined = False
        self._listed = 0  # GPUs of the machine, as the first reading had them

    def select(
        self, samples: Sequence[GpuSample], lost: Sequence[LostGpu]
    ) -> tuple[tuple[GpuSample, ...], tuple[LostGpu, ...]]:
        """Return the assigned ones of the GPUs that NVML lists. An unknown one counts as lost."""
        gpus = [*((one.index, one.uuid) for one in samples), *((one.index, one.uuid) for one in lost)]
        if not self._listed:
            self._listed = len(gpus)
            self._is_confined = _is_confined(self.assignment, gpus)
        if self._is_confined:
            return tuple(samples), tuple(lost)
        names = self.assignment.names
        self._uuids |= {name: found for name in names if name not in self._uuids and (found := _find(name, gpus))}
        own = frozenset[str]().union(*self._uuids.values())
        kept = tuple(one for one in lost if (one.uuid in own if one.uuid else str(one.index) in names))
        answered = {*self._uuids, *(str(one.index) for one in kept)}
        self.unknown = tuple(self._explain_unknown(name, gpus) for name in names if name not in answered)
        return tuple(one for one in samples if one.uuid in own), kept + self.unknown

    def contains(self, uuid: str) -> bool:
        """Return whether this GPU is assigned, or may be: an event may not say which GPU it concerns."""
        return self._is_confined or not uuid or any(uuid in uuids for uuids in self._uuids.values())

    def describe(self, count: int) -> str:
        """Return how many GPUs of this machine are used, and why. `count`: the GPUs that are used."""
        if not self.assignment.names:
            return self.assignment.source
        return f"{count} of {max(self._listed, count)} ({self.assignment.source})"

    def _explain_unknown(self, name: str, gpus: Sequence[tuple[int | None, str]]) -> LostGpu:
        there = ", ".join(f"{index} ({uuid})" if uuid else f"{index}" for index, uuid in gpus) or "none"
        why = f"{self.assignment.source}: there is no GPU {name}; this machine has {there}"
        number = int(name) if name.isdigit() else None
        return LostGpu("" if name[0].isdigit() else name, why, number)


def _is_confined(assignment: GpuAssignment, gpus: Sequence[tuple[int | None, str]]) -> bool:
    """Return whether NVML lists as many GPUs as were assigned by numbers of the machine: then it lists these."""
    if not assignment.counts_machine or not assignment.names:
        return False
    return all(map(str.isdigit, assignment.names)) and len({index for index, _ in gpus}) == len(assignment.names)


def _find(name: str, gpus: Sequence[tuple[int | None, str]]) -> frozenset[str]:
    """Return the UUIDs of a name: several where it is the number of a GPU in MIG mode, none where it fits none."""
    number, _, part = name.partition(":")
    if number.isdigit():
        slices = [uuid for index, uuid in gpus if index == int(number) and uuid]
        return frozenset(slices[int(part) : int(part) + 1] if part else slices)
    uuids = {uuid for _, uuid in gpus}
    found = {name} & uuids or {uuid for uuid in uuids if uuid.startswith(name)}
    return frozenset(found) if len(found) == 1 else frozenset()
