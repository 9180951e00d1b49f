"""When containers ran, by their own stamps: files that outlive the container, its folder and its runner.

The runner's entry point creates the file before the start, under two names: in the job's tmp/, where the job writes,
and beside the jobs, where it stays when the rest is removed.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

from runner.engines.port import ContainerSpec
from tests.chaos.evidence import ContainerRunTimes

STAMPS_NAME = "stamps"
StartCall = Callable[[ContainerSpec], Awaitable[str]]


def start_with_stamps(start: StartCall, kept: Path) -> StartCall:
    """Return the engine's `start` with a stamp file in the job's folder; its second name is in `kept`."""
    kept.mkdir(exist_ok=True)

    async def started(spec: ContainerSpec) -> str:
        own = spec.job_dir / "tmp" / STAMPS_NAME
        own.parent.mkdir(parents=True, exist_ok=True)
        own.touch()
        own.chmod(0o666)  # containers run as another user
        other = kept / spec.identity.folder
        if not other.exists():
            other.hardlink_to(own)
        return await start(spec)

    return started


def read_runs(host: str, kept: Path) -> list[ContainerRunTimes]:
    """Return the stamps of every container of the host that wrote any."""
    found = []
    for path in sorted(kept.iterdir()) if kept.exists() else ():
        stamped = [float(line) for line in path.read_text().splitlines() if line]
        if stamped:
            _, job_id, round_, attempt = path.name.split(".")
            found.append(ContainerRunTimes(host, job_id, int(round_), int(attempt), stamped[0], stamped[-1]))
    return found
