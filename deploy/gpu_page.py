"""Writes what `pytest -m gpu` says on this machine into docs/gpu.md: date, card, driver, output. Run: just gpu-page."""

import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu.md"
MARK = "<!-- what follows is written by `just gpu-page` -->\n"
CARDS = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,vbios_version", "--format=csv"]
TESTS = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-rA", "--color=no", "-p", "no:cacheprovider"]


def with_output(page: str, at: datetime, cards: str, output: str) -> str:
    """The page with this output below the mark, in place of what was there."""
    head, mark, _ = page.partition(MARK)
    if not mark:
        raise ValueError(f"{PAGE.name} has lost its mark: {MARK.strip()}")
    said = f"On {at:%Y-%m-%d}, with:\n\n```text\n{cards.strip()}\n```\n\n`pytest -m gpu` said:\n\n```text\n"
    return f"{head}{mark}\n{said}{output.strip()}\n```\n"


def main() -> int:
    """Run the tests, write the page; the tests' exit code, 2 where there is no card."""
    try:
        cards = subprocess.run(CARDS, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no card to write about: {error}; run this on a machine with an NVIDIA card and its driver")
        return 2
    environ: Mapping[str, str] = os.environ | {"REQUIRE_GPU": "1"}
    done = subprocess.run(TESTS, capture_output=True, text=True, check=False, env=environ, cwd=PAGE.parents[1])
    output = done.stdout.replace(str(PAGE.parents[1]), ".")
    PAGE.write_text(with_output(PAGE.read_text(), datetime.now(UTC), cards, output))
    print(f"{PAGE.name} says now what the tests said (exit {done.returncode})")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
