"""Write the lock files from pyproject.toml: ``just lock``.

Each file holds one part and all its dependencies, pinned with the hashes of every platform's file, and agrees with the
parts before it. What is pinned stays pinned as long as pyproject.toml allows it; remove an entry to renew it. Nothing
in a lock file names an index: pip takes files from where it is set up to. torch is in no lock file, see ``TORCH_NOTE``.
"""

import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
UV = ROOT / ".venv/bin/uv"
TORCH_NOTE = """\
# torch itself is not here: its CPU, CUDA and ARM builds are different files under one version, so no list of hashes
# fits them all. justw installs the version that pyproject.toml pins; what torch depends on is locked below.
"""
CUDA_NOTE = "# What torch's CUDA build needs besides requirements-preview.lock.\n"
FILES_NOTE = "# {}. Installed for its files alone: what it depends on is left out.\n"
FIRST_CHOICE = re.compile(r"(cp311|abi3|py3)-.*(manylinux.*x86_64|none-any)")  # whose size is written down


def path(part: str) -> Path:
    """Return the lock file of an extra; that of the dependencies themselves for an empty name."""
    return ROOT / (f"requirements-{part}.lock" if part else "requirements.lock")


def compile_lock(part: str, requirements: Iterable[str], agree: Iterable[str] = (), *options: str) -> str:
    """Resolve for every platform from Python 3.11 on, and return the text of a pip requirements file."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source.in", Path(folder) / "out.txt"
        source.write_text("\n".join(requirements))
        if path(part).exists():
            shutil.copy(path(part), out)  # what stands there is preferred
        argv = [str(UV), "pip", "compile", "--quiet", str(source), f"--output-file={out}", "--universal"]
        argv += ["--python-version=3.11", "--fork-strategy=fewest"]  # one version for every Python: the one tested
        argv += ["--generate-hashes", "--no-emit-index-url", "--no-emit-find-links", "--no-annotate", "--no-header"]
        argv += [f"--constraint={path(name)}" for name in agree]
        subprocess.run([*argv, *options], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return with_sizes(out)


def with_sizes(lock: Path) -> str:
    """Return the text with a comment under each entry: the bytes to download, or that it has no wheel."""
    table = lock.with_name("pylock.toml")
    argv = [str(UV), "pip", "compile", "--quiet", str(lock), f"--output-file={table}", "--no-deps", "--universal"]
    subprocess.run([*argv, "--python-version=3.11"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    sizes = {package["name"]: size_comment(package) for package in tomllib.loads(table.read_text())["packages"]}
    entries = re.findall(r"^\S.*(?:\n    .*)*", lock.read_text(), re.MULTILINE)
    return "".join(f"{entry}\n    # {sizes[re.split(r'[=[ ]', entry)[0]]}\n" for entry in entries)


def size_comment(package: dict[str, Any]) -> str:
    """Return the size of the wheel for Linux on x86-64 and Python 3.11, or of the largest one."""
    wheels: Sequence[dict[str, Any]] = package.get("wheels", [])
    if not wheels:
        return f"{package['sdist']['size']} bytes, no wheel"
    chosen = [wheel for wheel in wheels if FIRST_CHOICE.search(wheel["url"])] or wheels
    return f"{max(wheel['size'] for wheel in chosen)} bytes"


def main() -> None:
    """Write every lock file beside pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    path("").write_text(compile_lock("", [*project["dependencies"], *extras["server"]]))
    path("setup").write_text(compile_lock("setup", extras["setup"], [""]))
    path("dev").write_text(compile_lock("dev", extras["dev"], ["", "setup"]))
    without_torch = ["--no-emit-package=torch"]
    preview = compile_lock("preview", extras["preview"], ["", "setup", "dev"], *without_torch)
    path("preview").write_text(TORCH_NOTE + preview)
    torch = [line for line in extras["preview"] if line.startswith("torch==")]
    emitted = [f"--no-emit-package={name}" for name in re.findall(r"^([^\s#=\[]+)==", preview, re.MULTILINE)]
    # --no-config: pyproject.toml tells uv what the CPU build asks for.
    cuda = compile_lock("cuda", torch, ["", "setup", "dev", "preview"], "--no-config", *without_torch, *emitted)
    path("cuda").write_text(CUDA_NOTE + cuda)
    path("runpod").write_text(compile_lock("runpod", extras["runpod"]))
    for part, what in (("models", "MediaPipe's face models"), ("samples", "A sample video and a recording")):
        path(part).write_text(FILES_NOTE.format(what) + compile_lock(part, extras[part], [], "--no-deps"))


if __name__ == "__main__":
    main()
