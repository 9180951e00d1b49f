"""GPUs for tests: a libnvidia-ml.so.1 built from stub/, and the state file with its answers."""

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent / "stub"
FLAGS = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-Wl,-soname,libnvidia-ml.so.1"]


@functools.cache
def build_library(*defines: str) -> Path:
    """Return the library, compiled once per run for each set of defines; skip where there is no C compiler."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc: the NVML stub cannot be built (install gcc)")
    folder = tempfile.mkdtemp(prefix="nvml-stub-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = Path(folder) / "libnvidia-ml.so.1"
    sources = [str(source) for source in sorted(SOURCES.glob("*.c"))]
    subprocess.run([compiler, *FLAGS, *defines, *sources, "-o", str(library), "-lpthread"], check=True)
    return library


def gpu_uuid(index: int) -> str:
    """Return the UUID of the stub's GPU `index`."""
    return f"GPU-00000000-0000-4000-8000-{index:012}"


def slice_uuid(gpu: int, number: int) -> str:
    """Return the UUID of slice `number` of the stub's GPU `gpu`; its values are those of `gpu<100 + 16 x gpu +
    number>`.
    """
    return f"MIG-00000000-0000-4000-8000-{100 + 16 * gpu + number:012}"


class StubNvml:
    """A folder with the library and its state. A child that runs with `env` sees these GPUs."""

    def __init__(self, folder: Path, *defines: str, **values: object) -> None:
        self._library = folder / "libnvidia-ml.so.1"
        self._state = folder / "state"
        self._events = folder / "state.events"
        self._values: dict[str, object] = {}
        self.env = {**os.environ, "LD_LIBRARY_PATH": str(folder), "NVIDIA_STUB_STATE": str(self._state)}
        self.install(*defines)
        self.set(**values)

    def install(self, *defines: str) -> None:
        """Install the library of another driver; processes that have loaded the old one keep it."""
        fresh = self._library.with_suffix(".new")
        shutil.copy(build_library(*defines), fresh)
        fresh.replace(self._library)

    def set(self, **values: object) -> None:
        """Set keys of the state; "__" is the dot: `gpu0__temperature=90`. None removes a key."""
        self._values |= {key.replace("__", "."): value for key, value in values.items()}
        lines = [f"{key} {value}\n" for key, value in self._values.items() if value is not None]
        fresh = self._state.with_suffix(".new")
        fresh.write_text("".join(lines))
        fresh.replace(self._state)

    def xid(self, gpu: int, number: int, instance: int = -1) -> None:
        """Report an XID; `instance` limits it to that MIG slice."""
        with self._events.open("a") as events:
            events.write(f"{gpu} {number} {instance}\n")
