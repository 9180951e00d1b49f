"""Install what a verb needs: exactly the files that the lock files pin, even if newer releases exist.

`./justw VERB` runs `install.py VERB` before `just VERB`. pip gets the locked files by name and hash with --no-deps, so
it resolves nothing, and of the user's settings it sees only those that say where files come from (``LOCATIONS``).
Each complete part has a stamp in its environment. A part without a stamp is checked again. Packages that are complete
stay; those that an interrupted run left half unpacked are fetched again.

    install.py VERB          install, unless everything is there
    install.py --check VERB  exit with 0 if everything is there
    install.py pip ARGS…     run the environment's pip as the installation does

Standard library only, and a single file: it runs with any Python from 3.11 on, before anything is installed.
"""

import ast
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and its parts in the order in which they are installed."""

    folder: Path
    parts: tuple[str, ...]

    @property
    def python(self) -> Path:
        return self.folder / "bin/python"

    def stamp(self, part: str) -> Path:
        return self.folder / "justw" / part


# Two parts have no lock file of their own: `torch`, whose builds share a version, and `lamplighter`, this project.
LOCKS = {
    "setup": "requirements-setup.lock",
    "runtime": "requirements.lock",
    "preview": "requirements-preview.lock",
    "models": "requirements-models.lock",
    "samples": "requirements-samples.lock",
    "dev": "requirements-dev.lock",
    "runpod": "requirements-runpod.lock",
}
CUDA_LOCK = "requirements-cuda.lock"
SETUP = Environment(VENV, ("setup",))
RUNTIME = Environment(VENV, (*SETUP.parts, "runtime", "lamplighter"))
DEMO = Environment(VENV, (*RUNTIME.parts, "preview", "torch", "models", "samples"))
EVERYTHING = Environment(VENV, (*DEMO.parts, "dev"))
# The verbs of the justfile that need less than everything, and the one that is given another verb.
VERBS = {
    "setup": EVERYTHING,
    "": SETUP,
    "help": SETUP,
    "base": SETUP,
    "engine": SETUP,
    "ci": SETUP,
    "up": RUNTIME,
    "edge": RUNTIME,
    "docs": RUNTIME,
    "demo": DEMO,
    "runpod": Environment(ROOT / ".cache/runpod", ("runpod",)),  # no verb: `./justw setup runpod`
}

# pip's settings that say where files come from and how they are reached; its other settings change what is installed.
LOCATIONS = {
    *("index-url", "extra-index-url", "find-links", "no-index"),
    *("proxy", "trusted-host", "cert", "client-cert", "keyring-provider"),
    *("timeout", "default-timeout", "retries", "resume-retries"),
    *("cache-dir", "no-cache-dir"),
}
# Settings that hold several things, of which these are about reaching an index.
LOCATION_VALUES = {"use-feature": {"truststore"}, "use-deprecated": {"legacy-certs"}}
# With these, `pip config list` prints everything: its own options are settings too, and variables outrank files.
PIP_OUTPUT_VARIABLES = {
    f"PIP_{name}": "0" for name in ("QUIET", "VERBOSE", "REQUIRE_VIRTUALENV", "USER", "GLOBAL", "SITE")
}

BATCH_BYTES = 25_000_000  # what an interruption may lose: pip unpacks nothing before all is downloaded
TORCH_BYTES = {"cpu": 192_000_000, "cuda": 527_000_000}  # 2.13.0 for Linux on x86-64
POLL_S = 0.25
# Imported once a part is installed, which compiles these modules. pip would compile all files of all packages.
IMPORTS = {
    "lamplighter": "lamplighter.cli.edge, lamplighter.cli.runner, runner.engines.docker",
    "torch": "av, numpy, tflite, torch",
}


class InstallError(Exception):
    """Something could not be installed; the message is one line for the user."""


class ToolFailed(InstallError):
    """pip or venv failed; the message is what it wrote, empty where it wrote to the terminal itself."""


@dataclass(frozen=True)
class LockEntry:
    """An entry of a lock file. `text` is what pip reads, without the marker."""

    name: str
    version: str
    size_bytes: int
    has_wheel: bool
    text: str


ENTRY = re.compile(
    r"^(?P<pin>(?P<name>[\w.-]+)==(?P<version>\S+))(?: ; (?P<marker>.*?))? (?P<rest>\\\n(?: +.*\n)+)", re.MULTILINE
)
SIZE = re.compile(r"# (?P<bytes>\d+) bytes(?P<no_wheel>, no wheel)?")


def read_lock(path: Path) -> list[LockEntry]:
    """Return the entries that are meant for this Python and this platform."""
    # pip's own reading of a marker; imported late, because the Python that makes the environment may have no pip.
    from pip._vendor.packaging.markers import Marker  # noqa: PLC0415

    entries = []
    for pin in ENTRY.finditer(path.read_text()):
        if pin["marker"] is None or Marker(pin["marker"]).evaluate():
            size = SIZE.search(pin["rest"])
            size_bytes, has_wheel = (int(size["bytes"]), size["no_wheel"] is None) if size else (0, True)
            text = f"{pin['pin']} {pin['rest']}"
            entries.append(LockEntry(canonical(pin["name"]), pin["version"], size_bytes, has_wheel, text))
    return entries


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def say(text: str) -> None:
    print(f"justw: {text}", flush=True)


def amount(packages: int, size_bytes: float) -> str:
    return f"{packages} package{'s' if packages != 1 else ''} ({max(1, round(size_bytes / 1e6))} MB)"


# What is there


def required_environment(words: list[str]) -> Environment:
    """Return what the verb, or the verb after `setup`, runs in. `just` alone answers to one that it does not know."""
    verb = (words[1:2] if words[:1] == ["setup"] and words[1:] else words[:1] or [""])[0]
    known = re.search(rf"^@?{re.escape(verb)}\b[^:\n]*:(?!=)", (ROOT / "justfile").read_text(), re.MULTILINE)
    return VERBS.get(verb) or (EVERYTHING if known else SETUP)


def torch_build() -> str:
    """Return `cpu` or `cuda`, as LAMPLIGHTER_TORCH says."""
    chosen = os.environ.get("LAMPLIGHTER_TORCH") or "cpu"
    if chosen not in TORCH_BYTES:
        raise InstallError(f"LAMPLIGHTER_TORCH is '{chosen}': set it to cpu or cuda")
    return chosen


def torch_version() -> str:
    """Return the version that pyproject.toml pins."""
    pinned = re.search(r'"torch==([^"]*)"', (ROOT / "pyproject.toml").read_text())
    if pinned is None:
        raise InstallError("pyproject.toml pins no torch")
    return pinned[1]


def inputs_sum(part: str) -> str:
    """Return a text that changes when the part must be gone through again."""
    # The folder counts because scripts in the environment name it.
    told = [str(ROOT).encode(), Path(__file__).read_bytes()]
    if part == "torch":
        told += [torch_version().encode(), torch_build().encode(), (ROOT / CUDA_LOCK).read_bytes()]
    elif part == "lamplighter":
        told += [(ROOT / name).read_bytes() for name in ("pyproject.toml", "schemas/version.py")]
    else:
        told.append((ROOT / LOCKS[part]).read_bytes())
    return hashlib.sha256(b"\0".join(told)).hexdigest()


def missing_parts(environment: Environment) -> list[str]:
    """Return the parts that are not complete."""
    stamps = {part: environment.stamp(part) for part in environment.parts}
    return [part for part, stamp in stamps.items() if not stamp.exists() or stamp.read_text() != inputs_sum(part)]


def site_packages() -> list[Path]:
    return [Path(path) for path in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}]


def installed() -> dict[str, str]:
    """Return the version of each package of this environment. What is half unpacked is forgotten first."""
    versions = {}
    for folder in (folder for site in site_packages() for folder in site.glob("*.dist-info")):
        if not (folder / "INSTALLER").exists():  # pip writes it when the files are there
            shutil.rmtree(folder)
            continue
        package = importlib.metadata.Distribution.at(folder)
        versions[canonical(package.metadata["Name"])] = package.version
    return versions


def missing_entries(lock: str) -> list[LockEntry]:
    """Return the entries of a lock file that this environment does not have."""
    there = installed()
    return [entry for entry in read_lock(ROOT / lock) if there.get(entry.name) != entry.version]


# pip


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which no setting of pip or Python is left."""
    return {name: value for name, value in environ.items() if not name.startswith(("PIP_", "PYTHON"))}


def locations(python: Path) -> dict[str, str]:
    """Return the user's settings of pip that say where files come from, as variables of its environment."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    argv = [str(python), "-I", "-m", "pip", "config", "list"]
    environ = without_settings(os.environ) | settings | PIP_OUTPUT_VARIABLES
    listed = subprocess.run(argv, env=environ, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        raise InstallError(f"pip cannot read its settings: {listed.stderr.strip()}")
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}  # the later counts more
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in found and (kept := location(name, str(ast.literal_eval(value)))):
            found[section][name] = kept
    merged = found["global"] | found["install"] | found[":env:"]
    return {f"PIP_{name.upper().replace('-', '_')}": value for name, value in merged.items()}


def location(name: str, value: str) -> str:
    """Return what of a setting is kept, which may be nothing."""
    if name in LOCATION_VALUES:
        return " ".join(word for word in value.split() if word in LOCATION_VALUES[name])
    return " ".join(value.split()) if name in LOCATIONS else ""


def pip_environ(python: Path) -> dict[str, str]:
    """Return the environment for a pip that sees none of the user's settings but ``LOCATIONS``."""
    quiet = {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    return without_settings(os.environ) | locations(python) | quiet


class Pip:
    """The pip of an environment, with its progress where standard output is a terminal."""

    def __init__(self, python: Path, scratch: Path, lock: int) -> None:
        self._argv = [str(python), "-I", "-m", "pip", "-qq", "install", "--no-deps", "--no-warn-script-location"]
        self._argv += ["--root-user-action=ignore", "--no-compile"]  # see compile_imports
        self._environ = pip_environ(python) | {"TMPDIR": str(scratch)}
        self._scratch = scratch
        self._lock = lock  # kept open by pip too: one that outlives a killed justw still holds it
        self.total_bytes = 0
        self._done_bytes = 0

    def install(self, *words: str | Path, size_bytes: int = 0) -> None:
        """Install, without resolving. Raises ToolFailed with what pip wrote."""
        argv = [*self._argv, *map(str, words)]
        with (
            tempfile.TemporaryFile("w+") as written,
            subprocess.Popen(
                argv, env=self._environ, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=written, pass_fds=(self._lock,)
            ) as pip,
        ):
            self._watch(pip, size_bytes)
            if pip.returncode:
                written.seek(0)
                raise ToolFailed(written.read().strip())
        self._done_bytes += size_bytes

    def install_locked(self, entries: Iterable[LockEntry]) -> None:
        """Install entries of lock files, in portions that an interruption may lose."""
        wheels = [entry for entry in entries if entry.has_wheel]
        sources = [entry for entry in entries if not entry.has_wheel]
        for batch in batches(wheels):
            self._install_file(batch, "--only-binary=:all:")
        if sources:  # built with what is locked and installed by now, never with what is newest
            names = ",".join(entry.name for entry in sources)
            self._install_file(sources, "--no-build-isolation", "--use-pep517", f"--no-binary={names}")

    def _install_file(self, entries: list[LockEntry], *options: str) -> None:
        names = self._scratch / "batch.txt"
        names.write_text("".join(entry.text for entry in entries))
        size_bytes = sum(entry.size_bytes for entry in entries)
        self.install("--require-hashes", *options, "-r", names, size_bytes=size_bytes)

    def _watch(self, pip: subprocess.Popen[bytes], size_bytes: int) -> None:
        """Wait for pip to end; on a terminal, show how much it has downloaded into its temporary folder."""
        if not size_bytes or not sys.stdout.isatty():
            pip.wait()
            return
        while pip.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                pip.wait(POLL_S)
            so_far = self._done_bytes + min(size_bytes, folder_bytes(self._scratch))
            print(f"\rjustw: {so_far / 1e6:.0f} of {self.total_bytes / 1e6:.0f} MB\x1b[K", end="", flush=True)
        print("\r\x1b[K", end="", flush=True)


def batches(entries: Iterable[LockEntry]) -> Iterator[list[LockEntry]]:
    batch: list[LockEntry] = []
    for entry in entries:
        if batch and sum(one.size_bytes for one in batch) + entry.size_bytes > BATCH_BYTES:
            yield batch
            batch = []
        batch.append(entry)
    if batch:
        yield batch


def folder_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # pip has moved it away
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118 - called four times a second
    return total


# The parts


def install_torch(pip: Pip) -> None:
    """Install torch as pyproject.toml pins it, the CPU build where pip can find one."""
    if torch_build() == "cuda" or not install_cpu_torch(pip):
        pip.install_locked(missing_entries(CUDA_LOCK))
        # A CPU build counts as this version too: the one that is there, and one that pip finds beside the plain build.
        plain = f"torch=={torch_version()},!={torch_version()}+cpu"
        pip.install("--only-binary=:all:", plain, size_bytes=TORCH_BYTES["cuda"])


def install_cpu_torch(pip: Pip) -> bool:
    """Return whether it is installed; False when pip finds none.

    For Linux, registries carry the CUDA build under the plain version. The CPU build has a version of its own, which
    pip finds where its settings name an index or a folder that has it; macOS has no other build than the plain one.
    """
    cpu = f"{torch_version()}+cpu"
    if installed().get("torch") == cpu:
        return True
    try:
        pip.install("--only-binary=:all:", f"torch=={cpu}", size_bytes=TORCH_BYTES["cpu"])
    except ToolFailed as failure:
        if "No matching distribution found" not in str(failure):
            raise
    else:
        return True
    libraries = missing_entries(CUDA_LOCK)
    size_bytes = sum(entry.size_bytes for entry in libraries) + TORCH_BYTES["cuda"]
    pip.total_bytes += size_bytes - TORCH_BYTES["cpu"]
    takes = amount(len(libraries) + 1, size_bytes)
    say(f"pip finds no torch {cpu} where it is set up to look, so the plain build is installed: {takes}")
    return False


def compile_imports(part: str) -> None:
    """Import what is used of a part, so that no later start compiles it. If that fails, the verb will say so."""
    if part in IMPORTS:  # with -I, PYTHONDONTWRITEBYTECODE does not count
        argv = [sys.executable, "-I", "-c", f"import {IMPORTS[part]}"]
        subprocess.run(argv, cwd=ROOT, stderr=subprocess.DEVNULL, check=False)


def announce(parts: list[str], pip: Pip) -> None:
    """Say how much is to be installed, if anything is."""
    locks = [LOCKS[part] for part in parts if part in LOCKS]
    if "torch" in parts and torch_build() == "cuda":
        locks.append(CUDA_LOCK)
    entries = {entry.name: entry.size_bytes for lock in locks for entry in missing_entries(lock)}
    if "torch" in parts and not installed().get("torch", "").startswith(torch_version()):
        entries["torch"] = TORCH_BYTES[torch_build()]
    pip.total_bytes = sum(entries.values())
    if entries:
        say(f"installing {amount(len(entries), pip.total_bytes)}")


def install(environment: Environment, lock: int) -> None:
    """Complete the environment whose Python this is. Called with the lock held."""
    parts = missing_parts(environment)
    if not parts:  # another run did it while this one waited
        return
    with scratch_folder(environment) as scratch:
        pip = Pip(environment.python, scratch, lock)
        announce(parts, pip)
        for part in parts:
            if part == "torch":
                install_torch(pip)
            elif part == "lamplighter":
                pip.install("--no-build-isolation", "--editable", ROOT)
            else:
                pip.install_locked(missing_entries(LOCKS[part]))
            compile_imports(part)
            stamp = environment.stamp(part)
            stamp.parent.mkdir(exist_ok=True)
            new = stamp.with_suffix(".new")
            new.write_text(inputs_sum(part))
            new.replace(stamp)
    say("ready")


@contextmanager
def scratch_folder(environment: Environment) -> Iterator[Path]:
    """pip's temporary folder. What an earlier run was killed over is removed first."""
    folder = environment.folder / "justw" / "tmp"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# One at a time


def hold_lock(environment: Environment) -> int:
    """Wait until no other run installs there; return the lock, which ends with the process, however that ends."""
    place = ROOT / ".cache" / f"{environment.folder.name.lstrip('.')}.lock"
    place.parent.mkdir(exist_ok=True)
    lock = os.open(place, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another run is installing: waiting for its end")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def is_usable(environment: Environment) -> bool:
    """Return whether the environment runs. It does not when it is incomplete, was moved, or has lost its Python."""
    try:
        pip = subprocess.run([environment.folder / "bin/pip", "--version"], capture_output=True, check=False)
    except OSError:
        return False
    return pip.returncode == 0


def create_environment(environment: Environment) -> None:
    say(f"making {environment.folder.relative_to(ROOT)} with Python {platform.python_version()}")
    argv = [sys.executable, "-m", "venv", "--clear", str(environment.folder)]
    if subprocess.run(argv, cwd=ROOT, env=without_settings(os.environ), check=False).returncode:
        raise ToolFailed


def prepare(words: list[str]) -> None:
    """Make the environment if need be, and go on in its own Python."""
    environment = required_environment(words)
    lock = hold_lock(environment)
    if not is_usable(environment):
        create_environment(environment)
    os.set_inheritable(lock, True)
    os.execv(environment.python, [str(environment.python), "-I", __file__, "--held", str(lock), *words])  # noqa: S606


def main(words: list[str]) -> int:
    """Do what the module's docstring says; return the exit code."""
    try:
        match words:
            case ["--check", *verb]:
                return 1 if missing_parts(required_environment(verb)) else 0
            case ["--held", lock, *verb]:
                install(required_environment(verb), int(lock))
            case ["pip", *more]:
                argv = [sys.executable, "-I", "-m", "pip", *more]
                os.execve(argv[0], argv, pip_environ(Path(argv[0])))  # noqa: S606
            case verb:
                prepare(verb)
    except ToolFailed as failure:
        print(f"{failure}\njustw: setup failed: fix the error above and run it again".lstrip(), file=sys.stderr)
        return 1
    except InstallError as error:
        print(f"justw: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\njustw: stopped: run it again to go on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
