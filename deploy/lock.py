"""Write the lock files from pyproject.toml: ``just lock``.

Each file holds one part (runtime, dev, preview) and its own dependencies, pinned with the hashes of every platform's
file, and agrees with the parts before it. Nothing in them names an index: pip takes files from where it is set up to.
torch is left out of its lock, see ``TORCH_NOTE``.
"""

import subprocess
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
UV = ROOT / ".venv/bin/uv"
TORCH_NOTE = """\
# torch itself is not here: its CPU, CUDA and ARM builds are different files under one version, so no list of hashes
# fits them all. justw installs the version that pyproject.toml pins; what torch depends on is locked below.
"""


def compile_lock(requirements: Iterable[str], constraints: Iterable[Path], *options: str) -> str:
    """Resolve for every platform from Python 3.11 on, and give the text of a pip requirements file."""
    with tempfile.NamedTemporaryFile("w", suffix=".in") as source:
        source.write("\n".join(requirements))
        source.flush()
        argv = [str(UV), "pip", "compile", "--quiet", source.name, "--universal", "--python-version=3.11"]
        argv += ["--fork-strategy=fewest"]  # one version for every Python: the one that is tested
        argv += ["--generate-hashes", "--no-emit-index-url", "--no-emit-find-links", "--no-annotate", "--no-header"]
        argv += [f"--constraint={path}" for path in constraints]
        return subprocess.run([*argv, *options], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Write the five lock files beside pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    runtime, dev, preview, models, samples = (
        ROOT / f"requirements{part}.lock" for part in ("", "-dev", "-preview", "-models", "-samples")
    )
    runtime.write_text(compile_lock(project["dependencies"], []))
    dev.write_text(compile_lock(extras["dev"], [runtime]))
    preview.write_text(TORCH_NOTE + compile_lock(extras["preview"], [runtime, dev], "--no-emit-package=torch"))
    for path, why in (
        (models, "MediaPipe's face models, which `preview` reads. Installed --no-deps: only its files are used."),
        (samples, "Sample videos for the demo and the tests. Installed --no-deps: only its files are used."),
    ):
        pinned = extras[path.stem.removeprefix("requirements-")]
        path.write_text(f"# {why}\n" + compile_lock(pinned, [], "--no-deps"))


if __name__ == "__main__":
    main()
