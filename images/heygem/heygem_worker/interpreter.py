"""The right Python: the vendor's modules are compiled for one version (cp38 or cp39), whoever starts us.

In the vendor's image that is the one that its own command calls, `python`; a distribution's python3 may be of the same
version and lack torch. Under the process engine the runner's Python starts us, with little in the environment, on a box
that is itself the vendor's image: so go on under the interpreter that the modules want, and with the library path that
the image gave to the box's first process.
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
    """Replace this process by one with the vendor's Python and library path; returns when they are right already."""
    if os.environ.get(DONE_VARIABLE):
        return
    env = {**os.environ, **missing_libraries(os.environ), DONE_VARIABLE: "1"}
    python = choose_python(read_compiled_version(home), os.environ)
    if python != sys.executable or env.get(LIBRARIES) != os.environ.get(LIBRARIES):
        os.execve(python, [python, main], env)  # noqa: S606 - our own file, no shell


def read_compiled_version(home: Path) -> str | None:
    """The version that the vendor's modules are compiled for, as "3.8"; None when they do not say."""
    found = (TAG.search(path.name) for path in sorted((home / "service").glob("*.so")))
    return next((".".join(tag.groups()) for tag in found if tag), None)


def choose_python(version: str | None, env: Mapping[str, str]) -> str:
    """HEYGEM_PYTHON where it names a program; else one of that version, if possible with torch; else our own.

    Our own stays where the modules name no version, and where nothing fits: the import then says what is wrong.
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
    """`python` before `python3`, as the vendor calls it."""
    for name in ("python", "python3", "python" + version):
        for folder in [*env.get("PATH", os.defpath).split(os.pathsep), *PLACES]:
            if Path(folder, name).exists():
                yield str(Path(folder, name))


def _probe_python(python: str) -> str:
    """Its version and whether it finds torch, as "3.8 True"; empty where it cannot be asked."""
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
    except OSError:  # somebody else's process: a container's is ours
        return {}
    path = next((value for name, _, value in (pair.partition("=") for pair in pairs) if name == LIBRARIES), "")
    return {LIBRARIES: path} if path else {}
