"""The list of what `install` wrote: one file for the system, one for each user. `uninstall` reads it."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, structs

from bus.secret_files import atomic_write
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
