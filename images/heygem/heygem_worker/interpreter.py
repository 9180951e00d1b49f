"""Continue under the Python version that the vendor's modules are compiled for (cp38 or cp39).

In the vendor's image it is `python`, which the image's own command calls. A distribution's python3 may have the same
version but lack torch. Under the process engine the machine itself was started from the vendor's image. The runner's
Python then starts this program, with a small environment. So replace this process with the interpreter that the modules
need, and take the library path from the environment of the machine's first process.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

TAG = re.compile(r"\.cpython-(\d)(\d+)[^.]*\.so$")
LIBRARIES = "LD_LIBRARY_PATH"
DONE_VARIABLE = "HEYGEM_INTERPRETER_CHOSEN"
PLACES = ("/usr/local/python3/bin", "/opt/conda/bin", "/usr/local/bin", "/usr/bin")
PYTHON_VARIABLE = "HEYGEM_PYTHON"
PROBE_SCRIPT = (
    "import sys, importlib.util as u; print('%d.%d' % sys.version_info[:2], u.find_spec('torch') is not None)"
)


def exec_vendor_python(home: Path, main: str) -> None:
    """Replace this process with the vendor's Python and library path. Return if they are already right."""
    if os.environ.get(DONE_VARIABLE):
        return
    env = {**os.environ, **missing_libraries(os.environ), DONE_VARIABLE: "1"}
    python = choose_python(read_compiled_version(home), os.environ)
    if python != sys.executable or env.get(LIBRARIES) != os.environ.get(LIBRARIES):
        os.execve(python, [python, main], env)  # noqa: S606 - our own file, no shell


def read_compiled_version(home: Path) -> str | None:
    """Return the version that the vendor's modules are compiled for, as "3.8"; None if no file name contains it."""
    found = (TAG.search(path.name) for path in sorted((home / "service").glob("*.so")))
    return next((".".join(tag.groups()) for tag in found if tag), None)


def choose_python(version: str | None, env: Mapping[str, str]) -> str:
    """Return HEYGEM_PYTHON if it names a program; else a Python of `version`, if possible with torch; else our own.

    Our own is used if `version` is unknown or no Python has it. The import of the module then fails with the reason.
    """
    named = shutil.which(env.get(PYTHON_VARIABLE, ""))
    if named or version is None:
        return named or sys.executable
    fitting = []
    for path in (sys.executable, *_candidates(version, env)):
        said, _, with_torch = _probe_python(path).partition(" ")
        if said == version and with_torch == "True":
            return path
        if said == version:
            fitting.append(path)
    return fitting[0] if fitting else sys.executable


def check_python_variable(env: Mapping[str, str]) -> str:
    """Return what is wrong with HEYGEM_PYTHON, or an empty text."""
    named = env.get(PYTHON_VARIABLE)
    if not named or shutil.which(named):
        return ""
    return f"{PYTHON_VARIABLE}={named!r} is not a program that can be run: correct it or leave it out"


def _candidates(version: str, env: Mapping[str, str]) -> Iterator[str]:
    """Yield existing interpreters; `python` before `python3`, because the vendor's own command is `python`."""
    for name in ("python", "python3", "python" + version):
        for folder in [*env.get("PATH", os.defpath).split(os.pathsep), *PLACES]:
            if Path(folder, name).exists():
                yield str(Path(folder, name))


def _probe_python(python: str) -> str:
    """Return the interpreter's version and whether it finds torch, as "3.8 True"; empty if it cannot be run."""
    try:
        said = subprocess.run([python, "-c", PROBE_SCRIPT], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.decode(errors="replace").strip()


def missing_libraries(env: Mapping[str, str], first: Path = Path("/proc/1/environ")) -> dict[str, str]:
    """Return the library path of the container's first process if ours is empty."""
    if env.get(LIBRARIES):
        return {}
    try:
        pairs = first.read_text(errors="replace").split("\0")
    except OSError:  # the first process belongs to another user; in a container it is ours
        return {}
    path = next((value for name, _, value in (pair.partition("=") for pair in pairs) if name == LIBRARIES), "")
    return {LIBRARIES: path} if path else {}
