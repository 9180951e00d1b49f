"""Compare a PUT of 1 GB with digest check to sha256sum of the same file; measure a GET with Range. Uses a real edge."""

import asyncio
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bench.figures import Figure, p50
from bench.http_load import run_load
from bench.installation import run_installation
from bench.store import sha256sum
from lamplighter.files import hash_file

MIB = 1024 * 1024
SIZE_MB = 1024
RUNS = 3
AIM = 0.6


def _put(port: int, key: str, path: Path, sha256: str) -> float:
    """Return the seconds from the first byte sent to the answer."""
    head = f"PUT /v1/assets/{sha256} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    with socket.create_connection(("127.0.0.1", port)) as line, path.open("rb") as file:
        began = time.perf_counter()
        line.sendall(f"{head}Content-Length: {path.stat().st_size}\r\n\r\n".encode())
        line.sendfile(file)
        status = line.recv(65536).split(b"\r\n", 1)[0]
    if b" 20" not in status:
        raise SystemExit(f"the edge answered {status!r}")
    return time.perf_counter() - began


def _write(path: Path, seed: int) -> None:
    piece = seed.to_bytes(8, "big") + os.urandom(MIB - 8)
    with path.open("wb") as file:
        for _ in range(SIZE_MB):
            file.write(piece)


async def rows() -> AsyncIterator[Figure]:
    """Yield medians of alternating runs. Every run uploads another file, because a known file is not stored again."""
    async with run_installation() as made:
        with tempfile.TemporaryDirectory() as folder:
            path, puts, sums = Path(folder) / "big", list[float](), list[float]()
            before = made.installation.edge.peak_rss_mb()
            for seed in range(RUNS):
                await asyncio.to_thread(_write, path, seed)
                sha256 = await asyncio.to_thread(hash_file, path)
                sums.append(await asyncio.to_thread(sha256sum, path))
                puts.append(await asyncio.to_thread(_put, made.port, made.key, path, sha256))
            grown = made.installation.edge.peak_rss_mb() - before
        note = f"{SIZE_MB / p50(puts):.0f} MB/s against {SIZE_MB / p50(sums):.0f} MB/s of sha256sum"
        yield Figure("assets", "PUT 1 GB against sha256sum", p50(sums) / p50(puts), "x", AIM, least=True, note=note)
        yield Figure("assets", "edge memory beyond its start", grown, "MB", 50)
        head = f"GET /v1/assets/{sha256} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {made.key}\r\n"
        ask = f"{head}Range: bytes=536870912-537919487\r\n\r\n"
        ranged = await run_load(made.port, [ask.encode()] * 200, 1, b" 206 ")
        yield Figure("assets", "GET of a 1 MB range in the middle", p50(ranged.latencies) * 1e3, "ms")
