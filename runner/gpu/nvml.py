"""The NVML child process, `python -m runner.gpu.nvml`: the only module that imports `pynvml`.

It is a process of its own for two reasons. An NVML call may block in the kernel for minutes. A library whose driver was
upgraded cannot be loaded again in the same process.

The child writes messages of `schemas.gpu` to stdout: an NvmlReading every interval, and each XID at once.
It ends when the driver reports an error that only a new process can clear, or when the runner has gone.
"""

import contextlib
import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pynvml as nv

from runner.gpu.process_owner import trace_process
from schemas import gpu
from schemas.gpu import GpuMonitorState, GpuProcess, GpuRecoveryAction, GpuSample, LostGpu, RemappedRows, XidEvent

Handle = Any  # a ctypes pointer that pynvml makes; it ships no types

# NVML error codes that end this process, and the state they mean. Any other error that escapes is a crash.
ENDING_ERRORS = {
    nv.NVML_ERROR_LIBRARY_NOT_FOUND: GpuMonitorState.NONE,
    nv.NVML_ERROR_GPU_NOT_FOUND: GpuMonitorState.NONE,
    nv.NVML_ERROR_DRIVER_NOT_LOADED: GpuMonitorState.NO_DRIVER,
    nv.NVML_ERROR_LIB_RM_VERSION_MISMATCH: GpuMonitorState.MISMATCH,
}
# The GPU is gone and stays gone: to ask it again in this process would only risk a hang.
LOST_ERRORS = frozenset({nv.NVML_ERROR_GPU_IS_LOST, nv.NVML_ERROR_RESET_REQUIRED})
# This GPU or this driver never has the value: it is not asked again.
UNSUPPORTED_ERRORS = frozenset(
    {
        nv.NVML_ERROR_NOT_SUPPORTED,
        nv.NVML_ERROR_FUNCTION_NOT_FOUND,
        nv.NVML_ERROR_NO_PERMISSION,
        nv.NVML_ERROR_INVALID_ARGUMENT,
        nv.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    }
)
RECOVERIES = tuple(GpuRecoveryAction)[:-1]  # declared in NVML's order, from 0
RESET_HINT = "{}: reset the GPU (nvidia-smi --gpu-reset) or reboot the host"
NO_MIG_SLICE = "MIG mode is on and the GPU has no slice: make some (nvidia-smi mig -cgi), or switch MIG off"
EVENT_SILENCE_LIMIT = 10  # intervals; an event thread that is silent for longer hangs, and no reading is sent


def _memory(handle: Handle) -> dict[str, Any]:
    info = nv.nvmlDeviceGetMemoryInfo(handle, version=nv.nvmlMemory_v2)
    return _mib(total=info.total, used=info.used, free=info.free, reserved=info.reserved)


def _memory_before_510(handle: Handle) -> dict[str, Any]:
    info = nv.nvmlDeviceGetMemoryInfo(handle)
    return _mib(total=info.total, used=info.used, free=info.free)


def _mib(**amounts: int) -> dict[str, Any]:
    return {f"memory_{name}_mb": amount >> 20 for name, amount in amounts.items()}


def _recovery(handle: Handle) -> GpuRecoveryAction:
    (field,) = nv.nvmlDeviceGetFieldValues(handle, [nv.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    if field.nvmlReturn != nv.NVML_SUCCESS:
        raise nv.NVMLError(field.nvmlReturn)
    action = field.value.uiVal
    return RECOVERIES[action] if action < len(RECOVERIES) else GpuRecoveryAction.UNKNOWN


def _rows(handle: Handle) -> RemappedRows:
    correctable, uncorrectable, pending, failed = nv.nvmlDeviceGetRemappedRows(handle)
    return RemappedRows(correctable, uncorrectable, bool(pending), bool(failed))


def _processes(handle: Handle) -> tuple[GpuProcess, ...]:
    """Return every process once; one that computes and draws counts as computing."""
    drawing = {
        process.pid: process for process in _parse_processes(nv.nvmlDeviceGetGraphicsRunningProcesses_v3(handle), True)
    }
    computing = {process.pid: process for process in _computing(handle)}
    return tuple((drawing | computing).values())


def _computing(handle: Handle) -> tuple[GpuProcess, ...]:
    return _parse_processes(nv.nvmlDeviceGetComputeRunningProcesses_v3(handle), False)


def _computing_before_510(handle: Handle) -> tuple[GpuProcess, ...]:
    return _parse_processes(nv.nvmlDeviceGetComputeRunningProcesses_v2(handle), False)


def _parse_processes(entries: Any, graphics: bool) -> tuple[GpuProcess, ...]:
    return tuple(
        trace_process(GpuProcess(entry.pid, entry.usedGpuMemory and entry.usedGpuMemory >> 20, graphics=graphics))
        for entry in entries
    )


def _ecc(kind: int) -> Callable[[Handle], int]:
    return lambda handle: int(nv.nvmlDeviceGetTotalEccErrors(handle, kind, nv.NVML_VOLATILE_ECC))


def _slowdown_by_margin(handle: Handle) -> int:
    """Return the threshold of a GPU that publishes only its distance from it."""
    here = nv.nvmlDeviceGetTemperatureV(handle, nv.NVML_TEMPERATURE_GPU)
    return int(here + nv.nvmlDeviceGetMarginTemperature(handle))


# Each field of a sample and the calls that read it, newest first: the first that the driver supports is kept.
FIELDS: dict[str, tuple[Callable[[Handle], Any], ...]] = {
    "temperature_c": (
        lambda h: nv.nvmlDeviceGetTemperatureV(h, nv.NVML_TEMPERATURE_GPU),
        lambda h: nv.nvmlDeviceGetTemperature(h, nv.NVML_TEMPERATURE_GPU),
    ),
    "slowdown_c": (
        lambda h: nv.nvmlDeviceGetTemperatureThreshold(h, nv.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
        _slowdown_by_margin,
    ),
    "clock_reasons": (nv.nvmlDeviceGetCurrentClocksEventReasons, nv.nvmlDeviceGetCurrentClocksThrottleReasons),
    "ecc_corrected": (_ecc(nv.NVML_MEMORY_ERROR_TYPE_CORRECTED),),
    "ecc_uncorrected": (_ecc(nv.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),),
    "rows": (_rows,),
    "retired_pending": (lambda h: bool(nv.nvmlDeviceGetRetiredPagesPendingStatus(h)),),
    "recovery": (_recovery,),
    "utilization": (lambda h: nv.nvmlDeviceGetUtilizationRates(h).gpu,),
    "power_w": (lambda h: nv.nvmlDeviceGetPowerUsage(h) / 1000,),
    "energy_mj": (nv.nvmlDeviceGetTotalEnergyConsumption,),
    "compute_capability": (lambda h: "{}.{}".format(*nv.nvmlDeviceGetCudaComputeCapability(h)),),
    "processes": (_processes, _computing, _computing_before_510),
}


# For a MIG slice, NVML reports the slice's memory and these fields; other fields are those of the whole GPU. Values
# that the slices share are left out: the power, for example, cannot be attributed to one slice.
SLICE_FIELDS = frozenset({"processes"})
SHARED_FIELDS = frozenset({"utilization", "power_w", "energy_mj"})
EVERY_INSTANCE = 0xFFFFFFFF  # gpuInstanceId of an event that names no slice (nvml.h, nvmlEventData_t)


class NvmlDevice:
    """One GPU, or a MIG slice of one. Its handle is valid as long as this process.

    `parent` is the handle of the whole GPU, also for a slice. `instance` is the number of the slice on it, else None.
    """

    def __init__(self, handle: Handle, index: int, whole: Handle = None) -> None:
        self.uuid: str = nv.nvmlDeviceGetUUID(handle)
        self.handle = handle
        self.parent = whole or handle
        self.index = index
        self.name: str = nv.nvmlDeviceGetName(handle)
        self.instance: int | None = nv.nvmlDeviceGetGpuInstanceId(handle) if whole else None
        self._ways = {field: ways for field, ways in FIELDS.items() if not (whole and field in SHARED_FIELDS)}
        self._lost: LostGpu | None = None

    def slices(self) -> list["NvmlDevice"] | None:
        """Return the slices that take work in place of a GPU in MIG mode; None where the GPU takes work itself."""
        try:
            sliced, _ = nv.nvmlDeviceGetMigMode(self.handle)
        except nv.NVMLError as error:
            if error.value not in UNSUPPORTED_ERRORS:
                raise
            return None
        return list(self._slices()) if sliced else None

    def _slices(self) -> Iterator["NvmlDevice"]:
        for number in range(nv.nvmlDeviceGetMaxMigDeviceCount(self.handle)):
            with contextlib.suppress(nv.NVMLError_NotFound):  # numbers may have gaps
                handle = nv.nvmlDeviceGetMigDeviceHandleByIndex(self.handle, number)
                yield NvmlDevice(handle, self.index, self.handle)

    def read(self) -> GpuSample | LostGpu:
        """Return a sample, or that the GPU does not answer."""
        if self._lost is not None:
            return self._lost
        try:
            return self._sample()
        except nv.NVMLError as error:
            if error.value in ENDING_ERRORS:
                raise
            lost = LostGpu(self.uuid, RESET_HINT.format(error), self.index, self.name)
            if error.value in LOST_ERRORS:
                self._lost = lost
            return lost

    def _sample(self) -> GpuSample:
        try:
            memory = _memory(self.handle)
        except nv.NVMLError_FunctionNotFound:
            memory = _memory_before_510(self.handle)
        values: dict[str, Any] = {
            field: value for field in self._ways if (value := self._read_field(field)) is not None
        }
        return GpuSample(index=self.index, uuid=self.uuid, name=self.name, **memory, **values)

    def _read_field(self, field: str) -> Any:
        """Return the field's value; None if the GPU has none, or has none now."""
        handle = self.handle if field in SLICE_FIELDS else self.parent
        while ways := self._ways[field]:
            try:
                return ways[0](handle)
            except nv.NVMLError as error:
                if error.value in LOST_ERRORS or error.value in ENDING_ERRORS:
                    raise
                if error.value not in UNSUPPORTED_ERRORS:
                    return None
                self._ways[field] = ways[1:]
        return None


class XidListener(threading.Thread):
    """Thread that waits for XIDs. `last_turn_at` is when it last returned from the driver (monotonic seconds)."""

    def __init__(self, devices: list[NvmlDevice], interval: float) -> None:
        super().__init__(name="nvml-events", daemon=True)  # daemon: it may be stuck in the driver at our exit
        self.last_turn_at = time.monotonic()
        self._devices, self._interval = devices, interval
        self._set = self._register()

    def run(self) -> None:
        while True:
            self.last_turn_at = time.monotonic()
            try:
                self._wait()
            except nv.NVMLError_Timeout:
                continue
            except nv.NVMLError:
                # A lost GPU ends every wait at once, for all GPUs. The new set is registered before the pause, so
                # that it collects what the others report during it.
                old = self._set
                self._set = self._register()
                _free(old)
                time.sleep(self._interval)

    def _wait(self) -> None:
        if self._set is None:
            raise nv.NVMLError(nv.NVML_ERROR_NOT_READY)
        event = nv.nvmlEventSetWait_v2(self._set, int(self._interval * 1000))
        for uuid in self._find_uuids(event.device, event.gpuInstanceId) or [""]:
            _emit(XidEvent(uuid, event.eventData, at=time.time()))

    def _find_uuids(self, device: Handle, instance: int) -> list[str]:
        """Return the GPU, or the slices, that the event concerns: one slice or all of the GPU's."""
        found = [one for one in self._devices if _address(one.parent) == _address(device)]
        return [one.uuid for one in found if one.instance is None or instance in {EVERY_INSTANCE, one.instance}]

    def _register(self) -> Any:
        """Return an event set of the GPUs; None if no GPU reports events (WSL, all lost).

        The samples still show errors.
        """
        try:
            events = nv.nvmlEventSetCreate()
        except nv.NVMLError:
            return None
        registered = False
        for parent in {_address(device.parent): device.parent for device in self._devices}.values():
            with contextlib.suppress(nv.NVMLError):
                nv.nvmlDeviceRegisterEvents(parent, nv.nvmlEventTypeXidCriticalError, events)
                registered = True
        if registered:
            return events
        _free(events)
        return None


def _free(events: Any) -> None:
    with contextlib.suppress(nv.NVMLError):  # the set of a lost GPU cannot be freed
        if events is not None:
            nv.nvmlEventSetFree(events)


def _address(handle: Handle) -> int:
    """Return the address of a handle. Handles are compared by it: a lost GPU no longer reports its UUID."""
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _open_device(index: int) -> NvmlDevice:
    """Open a GPU by UUID, not by index: indices move when a GPU falls off the bus."""
    uuid = nv.nvmlDeviceGetUUID(nv.nvmlDeviceGetHandleByIndex(index))
    return NvmlDevice(nv.nvmlDeviceGetHandleByUUID(uuid), index)


def _open_devices() -> tuple[list[NvmlDevice], tuple[LostGpu, ...]]:
    """Return the GPUs and slices that can be opened, and the GPUs that are listed and cannot take work."""
    devices: list[NvmlDevice] = []
    unusable = []
    for index in range(nv.nvmlDeviceGetCount()):
        try:
            device = _open_device(index)
            slices = device.slices()
            devices += [device] if slices is None else slices
            if slices == []:
                unusable.append(LostGpu(device.uuid, NO_MIG_SLICE, index, device.name))
        except nv.NVMLError as error:
            if error.value in ENDING_ERRORS:
                raise
            unusable.append(LostGpu("", RESET_HINT.format(error), index))
    if not devices and not unusable:
        raise nv.NVMLError(nv.NVML_ERROR_GPU_NOT_FOUND)
    return devices, tuple(unusable)


def _emit(message: gpu.NvmlMessage, lock: threading.Lock = threading.Lock()) -> None:  # noqa: B008 - one lock, on purpose
    with lock:
        sys.stdout.buffer.write(gpu.encode_nvml_message(message))
        sys.stdout.buffer.flush()


def run_child(interval_s: float, renew_s: float) -> None:
    """Read all GPUs every `interval_s` while the driver answers; return `renew_s` after one was lost."""
    nv.nvmlInit()
    driver = nv.nvmlSystemGetDriverVersion()
    devices, unusable = _open_devices()
    events = XidListener(devices, interval_s)
    events.start()
    complete_at = time.monotonic()
    while time.monotonic() - complete_at < renew_s:
        readings = [device.read() for device in devices]
        samples = tuple(reading for reading in readings if isinstance(reading, GpuSample))
        lost = tuple(reading for reading in readings if isinstance(reading, LostGpu)) + unusable
        if time.monotonic() - events.last_turn_at < EVENT_SILENCE_LIMIT * interval_s:
            _emit(gpu.NvmlReading(driver, samples, lost))
        if not lost:
            complete_at = time.monotonic()
        time.sleep(interval_s)


def main(argv: list[str]) -> int:
    """Run until the driver ends it. The exit code is one of `nvml_protocol.EXIT_CODES`, EXIT_RENEW, or 1."""
    try:
        run_child(interval_s=float(argv[0]), renew_s=float(argv[1]))
    except nv.NVMLError as error:
        _emit(gpu.NvmlEnding(str(error)))
        return gpu.NVML_EXIT_CODES.get(ENDING_ERRORS.get(error.value, GpuMonitorState.FAILED), 1)
    except BrokenPipeError:  # the runner is gone
        return 0
    return gpu.NVML_EXIT_RENEW


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
