"""Make a release: `just release [--no-images] [--base IMAGE]`, into dist/.

Writes wheels and source archives of both distributions, a bill of materials for each (CycloneDX), SHA256SUMS, and the
OCI images of edge, runner and relay (deploy/images/Dockerfile). For the images, dist/image/wheels gets everything that
requirements.lock pins, by hash. The version is that of schemas/version.py, and CHANGELOG.md must describe it.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from deploy.install import InstallError, pip_environ
from deploy.relocation import RelocationError
from deploy.sbom import bill_of_materials, needed_by, read_wheel
from deploy.wheels import CLIENT, ROOT, SERVER, build, read_version

IMAGE_TARGETS = ("edge", "runner", "relay")
DOCKERFILE = ROOT / "deploy/images/Dockerfile"
CHECKSUMS = "SHA256SUMS"


class ReleaseError(Exception):
    """The release cannot be made; the message is one line that says what to do."""


def check_changelog(version: str, changelog: str) -> None:
    """Raises ReleaseError unless the changelog has a section for the version."""
    if not any(line.split()[:2] == ["##", version] for line in changelog.splitlines()):
        raise ReleaseError(f"CHANGELOG.md has no section for {version}: add `## {version}` with what changed")


def fetch_dependencies(folder: Path) -> None:
    """Download the wheels of requirements.lock by their hashes, and the pip that runs here, into `folder`."""
    python = sys.executable
    asked = [python, "-I", "-c", "import pip; print(pip.__version__)"]
    pip_version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    fetch = [
        python,
        "-I",
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
    ]
    environ = pip_environ(Path(python))
    for wanted in (["--require-hashes", "-r", str(ROOT / "requirements.lock")], [f"pip=={pip_version}"]):
        done = subprocess.run([*fetch, *wanted], env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ReleaseError(f"pip cannot fetch what requirements.lock pins: {done.stderr.strip()}")


def write_bills(wheels: Path, out: Path, version: str) -> list[Path]:
    """Write the bill of materials of both distributions, out of the wheels that the images get."""
    known = [read_wheel(file) for file in sorted(wheels.glob("*.whl"))]
    written = []
    for name in (CLIENT, SERVER):
        file = out / f"{name}-{version}.cdx.json"
        file.write_text(bill_of_materials(name, needed_by(name, known)))
        written.append(file)
    return written


def write_checksums(files: Iterable[Path], out: Path) -> None:
    """Write the file that `sha256sum --check` reads."""
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(files)]
    (out / CHECKSUMS).write_text("".join(lines))


def build_images(context: Path, version: str, base: str | None) -> list[str]:
    """Build an image for each target; return their names. Raises ReleaseError."""
    names = []
    for target in IMAGE_TARGETS:
        name = f"lamplighter-{target}:{version}"
        argv = ["docker", "build", "--quiet", "-f", str(DOCKERFILE), "--target", target, "-t", name]
        argv += [
            "--label",
            f"org.opencontainers.image.version={version}",
            *(["--build-arg", f"BASE={base}"] * bool(base)),
        ]
        try:
            done = subprocess.run([*argv, str(context)], capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise ReleaseError(
                "docker is not installed: install it, or leave the images out with --no-images"
            ) from error
        if done.returncode:
            raise ReleaseError(f"docker cannot build {name}: {done.stderr.strip()}")
        names.append(name)
    return names


def make_release(out: Path, *, base: str | None, with_images: bool) -> list[str]:
    """Return what was made, in words."""
    version = read_version(ROOT)
    check_changelog(version, (ROOT / "CHANGELOG.md").read_text())
    shutil.rmtree(out, ignore_errors=True)
    wheels = out / "image" / "wheels"
    wheels.mkdir(parents=True)
    files = build(ROOT, out)
    for file in files:
        if file.suffix == ".whl":
            shutil.copy(file, wheels)
    fetch_dependencies(wheels)
    files += write_bills(wheels, out, version)
    write_checksums(files, out)
    made = [str(file) for file in (*files, out / CHECKSUMS)]
    return made + (build_images(out / "image", version, base) if with_images else [])


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="release", description="Make a release into dist/.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="the folder, which is emptied first [dist]")
    parser.add_argument("--base", help="the base image, with Python 3.11 [that of the Dockerfile]")
    parser.add_argument("--no-images", action="store_true", help="leave the OCI images out")
    given = parser.parse_args(words)
    try:
        made = make_release(given.out, base=given.base, with_images=not given.no_images)
    except (ReleaseError, RelocationError, InstallError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    for line in made:
        print(f"release: {os.path.relpath(line) if os.sep in line else line}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
