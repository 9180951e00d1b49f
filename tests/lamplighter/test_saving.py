"""Outputs saved by the command line, and a place where they cannot be."""

import sys
from pathlib import Path

import anyio

from tests.lamplighter.test_sdk import finish
from tests.support.served_edge import ServedEdge


async def test_a_place_that_cannot_be_written_is_reported_in_one_line(face: ServedEdge, tmp_path: Path):
    await face.ann.put("/v1/jobs/a", json={"endpoint": "echo", "input": {"text": "hello"}})
    await finish(face, "a")
    taken = tmp_path / "taken"
    taken.write_text("a file where a folder should be")
    where = ["--url", face.url, "--key", face.texts["ann"]]
    argv = [sys.executable, "-m", "lamplighter", "watch", "a", "-o", str(taken / "out.txt"), *where]
    refused = await anyio.run_process(argv, check=False)
    assert (refused.returncode, len(refused.stderr.strip().splitlines())) == (2, 1)
    assert str(taken) in refused.stderr.decode()
