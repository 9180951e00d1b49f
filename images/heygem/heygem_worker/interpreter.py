"""The right Python: the vendor's modules are compiled for one version (cp38 or cp39), whoever starts us.

In the vendor's image that is its own. Under the process engine the runner's Python starts us, with little in the
environment, on a box that is itself the vendor's image: so go on under the interpreter that the modules want, and
with the library path that the image gave to the box's first process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

TAG = re.compile(r"\.cpython-(\d)(\d+)[^.]*\.so$")
LIBRARIES = "LD_LIBRARY_PATH"
DONE = "HEYGEM_INTERPRETER_CHOSEN"
PLACES = ("/usr/local/python3/bin", "/opt/conda/bin", "/usr/local/bin", "/usr/bin")
ASK = "import sys; print('%d.%d' % sys.version_info[:2])"
OURS = f"{sys.version_info[0]}.{sys.version_info[1]}"


def become(home: Path, main: str) -> None:
    """Replace this process by one with the vendor's Python and library path; returns when they are right already."""
    if os.environ.get(DONE):
        return
    env = {**os.environ, **missing_libraries(os.environ), DONE: "1"}
    python = matching(wanted(home), os.environ)
    if python != sys.executable or env.get(LIBRARIES) != os.environ.get(LIBRARIES):
        os.execve(python, [python, main], env)  # noqa: S606 - our own file, no shell


def wanted(home: Path) -> str | None:
    """The version that the vendor's modules are compiled for, as "3.8"; None when they do not say."""
    found = (TAG.search(path.name) for path in sorted((home / "service").glob("*.so")))
    return next((".".join(tag.groups()) for tag in found if tag), None)


def matching(version: str | None, env: Mapping[str, str]) -> str:
    """An interpreter of that version; our own where none is asked for or found (the import then says what is wrong)."""
    if version in {None, OURS}:
        return sys.executable
    return next((path for path in _candidates(str(version), env) if _version(path) == version), sys.executable)


def _candidates(version: str, env: Mapping[str, str]) -> Iterator[str]:
    if env.get("HEYGEM_PYTHON"):
        yield env["HEYGEM_PYTHON"]
    for folder in [*env.get("PATH", os.defpath).split(os.pathsep), *PLACES]:
        for name in ("python" + version, "python3", "python"):
            if Path(folder, name).exists():
                yield str(Path(folder, name))


def _version(python: str) -> str:
    try:
        said = subprocess.run([python, "-I", "-S", "-c", ASK], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.decode(errors="replace").strip()


def missing_libraries(env: Mapping[str, str], first: Path = Path("/proc/1/environ")) -> dict[str, str]:
    """The box's own library path, where ours is empty."""
    if env.get(LIBRARIES):
        return {}
    try:
        pairs = first.read_text(errors="replace").split("\0")
    except OSError:  # somebody else's process: a container's is ours
        return {}
    path = next((value for name, _, value in (pair.partition("=") for pair in pairs) if name == LIBRARIES), "")
    return {LIBRARIES: path} if path else {}
