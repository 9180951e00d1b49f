"""Compare a resumable upload (tus) to a plain PUT of the same file, through a real edge."""

import asyncio
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bench.figures import Figure, p50
from bench.installation import BenchInstallation, run_installation
from lamplighter.files import hash_file

MIB = 1024 * 1024
SIZE_MB = 512
RUNS = 5
AIM = 0.8
PIECE = 16 * MIB  # size of a piece, if the upload is sent in pieces as browsers do


def _write(path: Path, seed: int) -> None:
    piece = seed.to_bytes(8, "big") + os.urandom(MIB - 8)
    with path.open("wb") as file:
        for _ in range(SIZE_MB):
            file.write(piece)


def _send(made: BenchInstallation, head: str, path: Path, start: int = 0, count: int | None = None) -> dict[str, str]:
    """Send a request whose body is `count` bytes of the file from `start`. Return the headers of the answer."""
    size = path.stat().st_size - start if count is None else count
    told = f"{head}\r\nHost: x\r\nAuthorization: Bearer {made.key}\r\nContent-Length: {size}\r\n"
    with socket.create_connection(("127.0.0.1", made.port)) as line, path.open("rb") as file:
        line.sendall(f"{told}Tus-Resumable: 1.0.0\r\n\r\n".encode())
        if size:
            line.sendfile(file, start, size)
        status, *fields = line.recv(65536).decode().split("\r\n\r\n")[0].split("\r\n")
    if " 20" not in status:
        raise SystemExit(f"the edge answered {status!r}")
    return {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}


def _put(made: BenchInstallation, path: Path, sha256: str) -> float:
    began = time.perf_counter()
    _send(made, f"PUT /v1/assets/{sha256} HTTP/1.1", path)
    return time.perf_counter() - began


def _tus(made: BenchInstallation, path: Path, sha256: str, piece: int) -> float:
    """Upload the file, and return the seconds from the creation to the answer that names the asset."""
    began, size, at = time.perf_counter(), path.stat().st_size, 0
    place = _send(made, f"POST /v1/uploads HTTP/1.1\r\nUpload-Length: {size}", path, count=0)["location"]
    told: dict[str, str] = {}
    while at < size:
        head = f"PATCH {place} HTTP/1.1\r\nContent-Type: application/offset+octet-stream\r\nUpload-Offset: {at}"
        told = _send(made, head, path, at, min(piece, size - at))
        at = int(told["upload-offset"])
    if told["lamplighter-asset"] != f"sha256:{sha256}":
        raise SystemExit("the upload became another asset")
    return time.perf_counter() - began


async def rows() -> AsyncIterator[Figure]:
    """Yield medians of alternating runs. Each run has its own files, because a known file is not stored again."""
    puts, whole, pieces = list[float](), list[float](), list[float]()
    async with run_installation() as made:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "big"
            for seed in range(RUNS):
                for number, times in enumerate((puts, whole, pieces)):
                    await asyncio.to_thread(_write, path, 3 * seed + number)
                    sha256 = await asyncio.to_thread(hash_file, path)
                    piece = PIECE if times is pieces else SIZE_MB * MIB
                    send = (_put, made, path, sha256) if times is puts else (_tus, made, path, sha256, piece)
                    times.append(await asyncio.to_thread(*send))
    note = f"{SIZE_MB / p50(whole):.0f} MB/s against {SIZE_MB / p50(puts):.0f} MB/s"
    yield Figure("uploads", "tus, one request, against PUT", p50(puts) / p50(whole), "x", AIM, least=True, note=note)
    note = f"{SIZE_MB / p50(pieces):.0f} MB/s"
    yield Figure("uploads", "tus, pieces of 16 MiB, against PUT", p50(puts) / p50(pieces), "x", note=note)
