"""The GPUs that a scheduler, or the operator, has assigned to this runner. The rules are pure.

Slurm and Kubernetes tell a job its GPUs by variables. Where they do not confine devices, NVML still lists all GPUs of
the machine. So the runner counts, and gives to its jobs, only the GPUs that these variables name.

NVML lists the GPUs that this process can open, in the order of their PCI addresses. A number in CUDA_VISIBLE_DEVICES or
GPU_DEVICE_ORDINAL is taken as a position in this list. SLURM_JOB_GPUS and NVIDIA_VISIBLE_DEVICES number all GPUs of the
machine, also those that this process cannot open.

CUDA itself counts from the fastest GPU unless CUDA_DEVICE_ORDER is PCI_BUS_ID. Slurm's numbers are in PCI order. Where
models differ, a number from another source may mean another GPU: `AssignedGpus.doubt` says so.
"""

import re
from collections.abc import Mapping, Sequence, Set

from msgspec import Struct
from msgspec.structs import replace

from schemas.gpu import GpuSample, LostGpu

AUTO, ALL = "auto", "all"
SLURM_JOB_VARIABLE, CUDA_ORDER_VARIABLE = "SLURM_JOB_ID", "CUDA_DEVICE_ORDER"
# In the order in which they are read. CUDA's own comes first: it is right with and without confined devices.
CONFINED_VARIABLES = ("CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
MACHINE_VARIABLES = ("SLURM_JOB_GPUS", "NVIDIA_VISIBLE_DEVICES")
NO_GPU_WORDS = frozenset({"", "-1", "none", "NoDevFiles"})
# With these values the container runtime has confined the devices itself, by CDI or by a folder of device names.
_UNRESTRICTED = re.compile(r"(all|void|/.*|.*/.*=.*)?")
_NAME = re.compile(r"\d+(:\d+)?|(GPU|MIG)-[0-9A-Za-z/-]+")


class AssignmentInvalid(Exception):
    """The assigned GPUs cannot be used; the message says which variable is wrong and what to do."""


class GpuAssignment(Struct, frozen=True):
    """GPUs by number, `GPU:SLICE`, or the beginning of a UUID; no names: no GPU.

    `source` says where they are named. `counts_machine`: numbers count all GPUs of the machine. `order_is_unknown`:
    numbers may count from the fastest GPU, as CUDA does.
    """

    source: str
    names: tuple[str, ...] = ()
    counts_machine: bool = False
    order_is_unknown: bool = False


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
        found = _parse(variable, value, counts_machine=variable in MACHINE_VARIABLES)
        is_ordered = environ.get(CUDA_ORDER_VARIABLE) == "PCI_BUS_ID" or bool(environ.get(SLURM_JOB_VARIABLE))
        return replace(found, order_is_unknown=variable == "CUDA_VISIBLE_DEVICES" and not is_ordered)
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
        """The names that have not fitted a GPU of any reading."""
        self.doubt: str | None = None
        """Why a number may mean another GPU, and what to do; None without doubt. Known after the first reading."""
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
            self.doubt = _explain_doubt(self.assignment, {one.name for one in samples})
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


def _explain_doubt(assignment: GpuAssignment, models: Set[str]) -> str | None:
    if not assignment.order_is_unknown or len(models) < 2 or not any(name[0].isdigit() for name in assignment.names):
        return None
    return (
        f"{assignment.source}: numbers are taken in the order of nvidia-smi, but CUDA counts from the fastest GPU, and "
        f"this machine has several models: set {CUDA_ORDER_VARIABLE}=PCI_BUS_ID, or name the GPUs by UUID"
    )


def _is_confined(assignment: GpuAssignment, gpus: Sequence[tuple[int | None, str]]) -> bool:
    """Return whether NVML lists only the assigned GPUs: they have numbers of the machine, and NVML lists as many."""
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
