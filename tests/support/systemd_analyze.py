"""systemd-analyze, which checks units without a running systemd. REQUIRE_SYSTEMD=1 makes its absence a failure."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.requirements import require


def analyze(*words: str | Path, **environ: str) -> str:
    """Run it; return its output. Fails the test if it exits with an error."""
    program = shutil.which("systemd-analyze")
    require(None if program else "there is no systemd-analyze: install the package systemd", "REQUIRE_SYSTEMD")
    done = subprocess.run(
        [str(program), *map(str, words)], capture_output=True, text=True, check=False, env=os.environ | environ
    )
    if done.returncode:
        pytest.fail(done.stdout + done.stderr)
    return done.stdout + done.stderr
