"""Compare a PUT over HTTP into the edge's directory store to sha256sum of the same file.

    python -m bench.store [--mb 1024] [--runs 3] [--folder DIR]

Prints one JSON line: MB/s of both and of hashlib alone (medians of runs that alternate, so that noise on the machine
affects all), their ratios, the server's CPU seconds per GB, and its peak memory above that before the first byte. The
server is a separate process with only this route, so that the client's work is not counted as the edge's.
"""

import argparse
import asyncio
import hashlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvicorn
from litestar import Litestar, Request, put
from litestar.datastructures import State

from bench.processor import process_cpu_s
from edge.store.directory import open_directory
from edge.store.port import BlobStore

MIB = 1024 * 1024


async def serve(folder: Path, handle: int) -> None:
    async with open_directory(folder) as store:
        config = uvicorn.Config(app_over(store), log_level="error", loop="uvloop", http="httptools")
        await uvicorn.Server(config).serve([socket.socket(fileno=handle)])


def app_over(store: BlobStore) -> Litestar:
    @put("/{sha256:str}", request_max_body_size=None, status_code=201)
    async def take(request: Request[None, None, State]) -> None:
        await store.write(request.stream(), request.path_params["sha256"], 1 << 40)

    return Litestar([take], openapi_config=None)


def put_file(port: int, path: Path, sha256: str) -> float:
    """Return the seconds from the first byte sent to the answer."""
    with socket.create_connection(("127.0.0.1", port)) as line, path.open("rb") as file:
        began = time.perf_counter()
        line.sendall(f"PUT /{sha256} HTTP/1.1\r\nHost: x\r\nContent-Length: {path.stat().st_size}\r\n\r\n".encode())
        line.sendfile(file)
        status = line.recv(65536).split(b"\r\n", 1)[0]
        took = time.perf_counter() - began
    if b" 201 " not in status:
        raise SystemExit(f"the server answered {status!r}")
    return took


def sha256sum(path: Path) -> float:
    began = time.perf_counter()
    subprocess.run(["sha256sum", path], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def hashlib_only(path: Path) -> float:
    """Return the seconds of hashlib alone, the lower bound of a verified upload in Python.

    coreutils' sha256sum may be slower where it is built without OpenSSL.
    """
    began, digest = time.perf_counter(), hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(MIB):
            digest.update(block)
    return time.perf_counter() - began


def memory_mb(pid: int, field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def sample(path: Path, megabytes: int) -> str:
    """Fill `path` with bytes that no file system can compress, and return their digest."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(megabytes):
            block = os.urandom(MIB)
            digest.update(block)
            file.write(block)
        os.fsync(file.fileno())
    return digest.hexdigest()


def measure(folder: Path, megabytes: int, runs: int) -> dict[str, object]:
    path, root = folder / "sample", folder / "store"
    sha256 = sample(path, megabytes)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        os.set_inheritable(listening.fileno(), True)
        argv = [sys.executable, "-m", "bench.store", "--serve", str(listening.fileno()), "--folder", str(root)]
        server = subprocess.Popen(argv, pass_fds=[listening.fileno()])
        port = listening.getsockname()[1]
    try:
        put_file(port, Path(os.devnull), hashlib.sha256().hexdigest())
        before, cpu = memory_mb(server.pid, "VmRSS"), process_cpu_s(server.pid)
        ours, theirs, bound = [], [], []
        for _ in range(runs):
            theirs.append(sha256sum(path))
            bound.append(hashlib_only(path))
            ours.append(put_file(port, path, sha256))
            (root / "sha256" / sha256[:2] / sha256[2:]).unlink()  # otherwise the next run only verifies the file
        return report(megabytes, ours, theirs, bound) | {
            "server_cpu_s_per_gb": round((process_cpu_s(server.pid) - cpu) * 1000 / (runs * megabytes * MIB / 1e6), 2),
            "memory_growth_mb": round(memory_mb(server.pid, "VmHWM") - before, 1),
        }
    finally:
        server.terminate()
        server.wait()


def report(megabytes: int, ours: list[float], theirs: list[float], bound: list[float]) -> dict[str, object]:
    size = megabytes * MIB / 1e6
    put_s, sum_s, bound_s = map(statistics.median, (ours, theirs, bound))
    return {
        "bench": "store",
        "mb": round(size),
        "runs": len(ours),
        "put_mb_s": round(size / put_s),
        "put_mb_s_range": [round(size / max(ours)), round(size / min(ours))],
        "sha256sum_mb_s": round(size / sum_s),
        "hashlib_mb_s": round(size / bound_s),
        "ratio_to_sha256sum": round(sum_s / put_s, 2),
        "ratio_to_hashlib": round(bound_s / put_s, 2),
    }


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--mb", type=int, default=1024)
    flags.add_argument("--runs", type=int, default=3)
    flags.add_argument("--folder", type=Path, help="where to write; default a temporary folder")
    flags.add_argument("--serve", type=int, metavar="FD", help=argparse.SUPPRESS)
    given = flags.parse_args()
    if given.serve is not None:
        asyncio.run(serve(given.folder, given.serve))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        print(json.dumps(measure(Path(folder), given.mb, given.runs)))


if __name__ == "__main__":
    main()
