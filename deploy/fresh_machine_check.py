"""Prove the README's first command on a fresh machine: `python3 -m deploy.fresh_machine_check`.

Clones the committed tree and runs `./justw demo` in the clone with an empty home, no pip cache and no Docker on PATH,
then again without a network. Of this machine's settings it keeps only where pip finds its files. Prints seconds and MB.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from deploy.install import locations

ROOT = Path(__file__).resolve().parents[1]
RESULT = "demo/result.mp4"
STREAMS = "import av, sys; print(*sorted(s.type for s in av.open(sys.argv[1]).streams))"
OFFLINE = [
    "unshare",
    *([] if os.geteuid() == 0 else ["--map-root-user"]),
    "--net",
    "sh",
    "-c",
    'ip link set lo up && exec "$@"',
    "sh",
]


def programs(folder: Path) -> Path:
    """Create a folder of links to the programs on PATH, without Docker's, and to the Python that runs this."""
    folder.mkdir()
    for name in ("python3", f"python3.{sys.version_info.minor}"):
        (folder / name).symlink_to(Path(sys.base_prefix) / "bin" / name)
    for place in map(Path, os.get_exec_path()):
        for program in place.iterdir() if place.is_dir() and place.name != "shims" else ():
            link = folder / program.name
            if not program.name.startswith(("docker", "python")) and not link.is_symlink():
                link.symlink_to(program)
    return folder


def demo(clone: Path, environ: dict[str, str], *before: str) -> tuple[str, float]:
    """Run the demo, and return its output and its seconds. Ends this program if the demo fails."""
    began = time.monotonic()
    (clone / RESULT).unlink(missing_ok=True)
    done = subprocess.run(
        [*before, "./justw", "demo"], cwd=clone, env=environ, capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - began
    if done.returncode or not (clone / RESULT).exists():
        sys.exit(f"{done.stdout}{done.stderr}fresh: ./justw demo failed with {done.returncode} and made no video")
    python = clone / ".venv/bin/python"
    streams = subprocess.run([python, "-c", STREAMS, RESULT], cwd=clone, capture_output=True, text=True, check=False)
    if streams.stdout.split() != ["audio", "video"]:
        sys.exit(f"{done.stdout}fresh: {RESULT} holds {streams.stdout or streams.stderr}, not a video with sound")
    return done.stdout, seconds


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        clone, home = Path(scratch) / "clone", Path(scratch) / "home"
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        environ = locations(Path(sys.executable)) | {
            "HOME": str(home),
            "PATH": str(programs(Path(scratch) / "bin")),
            "LANG": "C.UTF-8",
        }
        environ.pop("PIP_CACHE_DIR", None)
        if shutil.which("docker", path=environ["PATH"]):
            sys.exit("fresh: there is still a docker on PATH")
        said, seconds = demo(clone, environ)
        installing = " and ".join(re.findall(r"\d+ packages? \(\d+ MB\)", said))
        disk = subprocess.run(["du", "-sm", clone / ".venv"], capture_output=True, text=True, check=True).stdout
        print(f"fresh: ./justw demo took {seconds:.0f} s from nothing: {installing}, {disk.split()[0]} MB on disk")
        _, seconds = demo(clone, environ, *OFFLINE)
        print(f"fresh: ./justw demo took {seconds:.0f} s again, without a network")


if __name__ == "__main__":
    main()
