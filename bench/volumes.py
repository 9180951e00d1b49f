"""Measure what a second endpoint on the same volume copies: the requests for its weights, and the time to its job."""

import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio.to_thread

from bench.figures import Figure
from bench.installation import BenchInstallation, run_installation, wait_or_exit, wait_until_succeeded
from lamplighter import api
from tests.support.asset_server import sha256_of
from tests.support.weights_server import WeightsServer, serve_weights

WEIGHTS_MB = 512
PROGRAM = """
import jobkit

def work(job):
    job.progress(1.0)
    return {"inode": (jobkit.volume("weights") / "unet").stat().st_ino}

jobkit.run(work)
"""


def _write_endpoint(folder: Path, url: str, sha256: str) -> None:
    folder.mkdir()
    (folder / "main.py").write_text(PROGRAM)
    (folder / "endpoint.toml").write_text(f"""
name = "{folder.name}"
image = "{folder.name}"
[process]
command = ["python3", "main.py"]
[[volumes]]
name = "weights"
path = "/weights"
[[volumes.files]]
path = "unet"
url = "{url}/unet"
sha256 = "{sha256}"
""")


async def _run_job(made: BenchInstallation, name: str) -> tuple[float, Any]:
    """Wait until the endpoint is offered, and run one job; return the seconds, and the job's data."""

    async def offered() -> bool:
        listed = await made.client.call(api.get_json("/v1/endpoints"))
        return name in {endpoint["name"] for endpoint in listed["endpoints"]}

    await wait_or_exit(made, offered, f"the endpoint {name} is")
    began = time.monotonic()
    ended = await wait_until_succeeded(made, (await made.client.submit(name)).id)
    return time.monotonic() - began, ended.output and ended.output.data


async def _measure(made: BenchInstallation, server: WeightsServer, root: Path) -> AsyncIterator[Figure]:
    body = b"0123456789abcdef" * (WEIGHTS_MB << 16)
    server.files["/unet"] = body
    sha256 = await anyio.to_thread.run_sync(sha256_of, body)
    await anyio.to_thread.run_sync(root.chmod, 0o755)
    await anyio.to_thread.run_sync(_write_endpoint, root / "first", server.url, sha256)
    await made.installation.start_runner(endpoints=(root,), LAMPLIGHTER_PACE__IMAGE_S="1")
    first_s, first = await _run_job(made, "first")
    before = len(server.requests)
    await anyio.to_thread.run_sync(_write_endpoint, root / "second", server.url, sha256)
    second_s, second = await _run_job(made, "second")
    if first != second:
        raise SystemExit(f"bench: the two endpoints have different files ({first}, {second})")
    note = (
        f"first job after {first_s:.1f} s with the download of {WEIGHTS_MB} MB, the second one after {second_s:.1f} s"
    )
    copied = len(server.requests) - before
    yield Figure("volumes", "requests for a second endpoint on the same volume", copied, "requests", 0, note=note)


async def rows() -> AsyncIterator[Figure]:
    """Measure the process engine; Docker mounts the same folder."""
    with tempfile.TemporaryDirectory() as folder:
        async with serve_weights() as server, run_installation() as made:
            async for row in _measure(made, server, Path(folder)):
                yield row
