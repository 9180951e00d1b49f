"""Write the output of `pytest -m gpu` on this machine into docs/gpu.md, with date, GPU and driver. Run: just gpu-page.

If this machine has the image of HeyGem's vendor, the output of the selfcheck is added.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu.md"
MARK = "<!-- what follows is written by `just gpu-page` -->\n"
GPU_QUERY = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,vbios_version", "--format=csv"]
TESTS = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-rA", "--color=no", "-p", "no:cacheprovider"]


HEYGEM_BASES = ("guiji2025/duix.avatar", "guiji2025/duix.avatar-5090")  # HEYGEM_BASE names another


def with_output(page: str, at: datetime, gpus: str, output: str, heygem: str = "") -> str:
    """Return the page with everything below its mark replaced by this output, followed by the section `heygem`."""
    head, mark, _ = page.partition(MARK)
    if not mark:
        raise ValueError(f"{PAGE.name} has lost its mark: {MARK.strip()}")
    said = f"On {at:%Y-%m-%d}, with:\n\n```text\n{gpus.strip()}\n```\n\n`pytest -m gpu` said:\n\n```text\n"
    return f"{head}{mark}\n{said}{output.strip()}\n```\n{heygem}"


def heygem_section(environ: Mapping[str, str]) -> str:
    """Return a section with the output of images/heygem/selfcheck; empty if this machine lacks the vendor's image."""
    base = environ.get("HEYGEM_BASE") or next(filter(_has_image, HEYGEM_BASES), None)
    if base is None:
        return ""
    argv = [sys.executable, "-m", "deploy.heygem_check", base]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=PAGE.parents[1])
    said = (done.stdout + done.stderr).strip()
    return f"\n`images/heygem/selfcheck {base}` ended with {done.returncode} and said:\n\n```text\n{said}\n```\n"


def _has_image(image: str) -> bool:
    try:
        return subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0
    except OSError:  # no docker command
        return False


def main() -> int:
    """Run the tests and write the page. Return the tests' exit code, or 2 if there is no GPU."""
    try:
        gpus = subprocess.run(GPU_QUERY, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no GPU to write about: {error}; run this on a machine with an NVIDIA GPU and its driver")
        return 2
    environ: Mapping[str, str] = os.environ | {"REQUIRE_GPU": "1"}
    done = subprocess.run(TESTS, capture_output=True, text=True, check=False, env=environ, cwd=PAGE.parents[1])
    output = done.stdout.replace(str(PAGE.parents[1]), ".")
    PAGE.write_text(with_output(PAGE.read_text(), datetime.now(UTC), gpus, output, heygem_section(environ)))
    print(f"{PAGE.name} says now what the tests said (exit {done.returncode})")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
