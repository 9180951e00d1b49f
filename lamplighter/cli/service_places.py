"""The folders to which `install` writes, the list of what it wrote, and the calls of systemd's manager.

There are folders and a list for the system, and for each user. `uninstall` reads the list.
"""

import grp
import hashlib
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, structs

from bus.secret_files import atomic_write
from lamplighter.cli.context import PROGRAM
from lamplighter.cli.service_units import Role

MANIFEST_FILE = "installed.json"


class ManifestUnreadable(Exception):
    """The manifest cannot be read; the message says what to do."""


class InstalledFile(Struct, frozen=True):
    """A file as `install` wrote it. `sha256` tells later whether somebody has edited it."""

    path: str
    sha256: str

    @property
    def is_edited(self) -> bool:
        """Return whether the file differs from what was written. A missing file is not edited."""
        try:
            return digest(Path(self.path).read_bytes()) != self.sha256
        except FileNotFoundError:
            return False


class InstalledRole(Struct, frozen=True):
    """One role: its units, its settings file, its data folder, and the options that it was installed with."""

    units: tuple[InstalledFile, ...]
    settings: InstalledFile | None
    data: str
    options: dict[str, Any] = {}


class InstallManifest(Struct, frozen=True):
    """The manifest. `created_user`: the system user that `install` made.

    `left`: data folders and edited settings of roles that were uninstalled without --data.
    """

    roles: dict[Role, InstalledRole] = {}
    created_user: str | None = None
    left: tuple[str, ...] = ()

    def with_role(self, role: Role, installed: InstalledRole) -> "InstallManifest":
        """Return the manifest with one role added or replaced."""
        return structs.replace(self, roles={**self.roles, role: installed})

    def without_role(self, role: Role, left: tuple[str, ...]) -> "InstallManifest":
        """Return the manifest without the role, which left the paths `left`."""
        roles = {name: kept for name, kept in self.roles.items() if name is not role}
        return structs.replace(self, roles=roles, left=tuple(dict.fromkeys((*self.left, *left))))


def digest(content: bytes) -> str:
    """Return the digest that tells an edited file."""
    return hashlib.sha256(content).hexdigest()


def read_manifest(folder: Path) -> InstallManifest:
    """Return the manifest in `folder`, an empty one without such a file. Raises ManifestUnreadable, OSError."""
    file = folder / MANIFEST_FILE
    try:
        return msgspec.json.decode(file.read_bytes(), type=InstallManifest)
    except FileNotFoundError:
        return InstallManifest()
    except msgspec.DecodeError as error:
        raise ManifestUnreadable(f"{file} cannot be read ({error}): restore it, or remove the units by hand") from error


def write_manifest(folder: Path, manifest: InstallManifest) -> None:
    """Write the manifest, or remove it if no role is left. Raises OSError."""
    if manifest != InstallManifest():
        atomic_write(folder / MANIFEST_FILE, msgspec.json.encode(manifest))
    else:
        (folder / MANIFEST_FILE).unlink(missing_ok=True)


SERVICE_USER = "lamplighter"
STATE_NAME = "lamplighter"
HOME_FOLDERS = (Path("/home"), Path("/root"), Path("/run/user"))
CALL_TIMEOUT_S = 150.0  # a stop may wait for the runner's grace time


class InstallFailed(Exception):
    """Something cannot be installed or removed; the message says why and what to do."""


class ServicePlaces(Struct, frozen=True):
    """The folders of an installation as services. `root`: the folder that stands for / (an image of a machine)."""

    is_system: bool
    units: Path
    config: Path
    state: Path
    root: Path = Path("/")

    def on_disk(self, path: Path) -> Path:
        """Return where `path`, as units name it, is now."""
        return self.root / path.relative_to("/")

    def settings(self, role: Role) -> Path:
        """Return the settings file of the role."""
        return self.config / f"{role}.toml"

    def data(self, role: Role) -> Path:
        """Return the data folder of the role."""
        return self.state / ("backups" if role is Role.BACKUP else str(role))


def find_places(*, is_system: bool, root: Path) -> ServicePlaces:
    """Return the folders of the system, or of this user."""
    if is_system:
        system = Path("/etc/systemd/system")
        return ServicePlaces(True, system, Path("/etc/lamplighter"), Path("/var/lib") / STATE_NAME, root)
    home = Path.home()
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    state = Path(os.environ.get("XDG_STATE_HOME") or home / ".local" / "state")
    return ServicePlaces(False, config / "systemd" / "user", config / STATE_NAME, state / STATE_NAME, root)


def find_own_program() -> tuple[str, ...]:
    """Return the argv of this program with an absolute path. A link stays a link: upgrades change where it leads."""
    called = Path(sys.argv[0])
    found = shutil.which(called) if called.name == PROGRAM else None
    # `abspath` does not follow links, as Path.resolve would.
    return (os.path.abspath(found),) if found else (sys.executable, "-m", PROGRAM)  # noqa: PTH100


def _program_files(argv: Iterable[str]) -> list[Path]:
    return [Path(argv_file).resolve() for argv_file in (*argv, sys.executable, __file__) if argv_file.startswith("/")]


def is_program_in_home(argv: Iterable[str]) -> bool:
    """Return whether the program, its Python or its modules are in a folder that ProtectHome=yes hides."""
    return any(file.is_relative_to(folder) for file in _program_files(argv) for folder in HOME_FOLDERS)


def check_program_reachable(argv: tuple[str, ...], user: str) -> None:
    """Raise InstallFailed if another user may not enter the folders of the program."""
    for file in _program_files(argv):
        for folder in file.parents:
            if not folder.stat().st_mode & 0o001:
                raise InstallFailed(
                    f"the user {user} cannot run {argv[0]}, because {folder} is closed to others: install Lamplighter "
                    "in a folder that all may enter, such as /opt/lamplighter, or give --run-as root"
                )


def user_exists(name: str) -> bool:
    """Return whether this machine has the user."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def group_exists(name: str) -> bool:
    """Return whether this machine has the group."""
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def create_user(name: str, home: Path) -> None:
    """Create a system user and its group. Raises InstallFailed."""
    _run(
        *("useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(home)),
        *("--shell", "/usr/sbin/nologin", name),
    )


def delete_user(name: str) -> None:
    """Delete the system user and its group. Raises InstallFailed."""
    if user_exists(name):
        _run("userdel", name)


class SystemdManager:
    """systemd's manager of the system or of this user, by systemctl. Does nothing below another root."""

    def __init__(self, places: ServicePlaces) -> None:
        self._words = () if places.is_system else ("--user",)
        self._is_here = places.root == Path("/")
        self._folder = Path("/run/systemd/system") if places.is_system else Path(f"/run/user/{os.getuid()}/systemd")

    @property
    def is_running(self) -> bool:
        """Return whether the manager runs (sd_booted(3))."""
        return self._is_here and self._folder.is_dir()

    def call(self, *words: str) -> None:
        """Run systemctl if the manager runs. Raises InstallFailed."""
        if self.is_running:
            _run("systemctl", *self._words, *words)


def _run(*argv: str) -> None:
    # Programs for administrators are in /usr/sbin, which the PATH of `su` may lack.
    program = shutil.which(argv[0], path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin")))
    if program is None:
        raise InstallFailed(f"{argv[0]} is not on this machine: install it, or use --print")
    try:
        done = subprocess.run([program, *argv[1:]], capture_output=True, text=True, check=False, timeout=CALL_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallFailed(f"{argv[0]} cannot be run ({error}): correct that, or use --print") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise InstallFailed(f"`{' '.join(argv)}` failed ({said[-1] if said else done.returncode}): correct that first")
