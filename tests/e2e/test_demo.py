"""The README's first command, run as the README shows it."""

import os
import subprocess
import sys
from pathlib import Path

import av
import pytest

from tests.support.installation import ROOT


@pytest.mark.long(13)
@pytest.mark.preview
@pytest.mark.timeout(600)
def test_the_demo_writes_a_talking_video_without_a_docker_engine(tmp_path: Path):
    """Run the demo on the process engine; tests/e2e/test_preview.py runs the same job in a container."""
    result = ROOT / "demo" / "result.mp4"
    result.unlink(missing_ok=True)
    argv = [sys.executable, str(ROOT / "deploy" / "demo.py"), "--engine", "process"]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, cwd=tmp_path, env=os.environ | {"TERM": "dumb"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not in a container" in done.stdout
    assert f"the talking video is {result}" in done.stdout
    with av.open(str(result)) as video:
        assert video.duration is not None
        assert 6.7 <= video.duration / av.time_base <= 7.0  # the sample recording lasts 6.7 s
