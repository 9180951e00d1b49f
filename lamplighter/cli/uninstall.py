"""`lamplighter uninstall`: stop and remove what `install` set up, by its manifest."""

import shutil
import sys
from contextlib import suppress
from pathlib import Path

import anyio
import click
from msgspec import structs

from lamplighter.cli.context import PROGRAM
from lamplighter.cli.display import json_line
from lamplighter.cli.install import EXIT_CODES, InstallOptions, scope_options
from lamplighter.cli.language import say
from lamplighter.cli.process_setup import exit_on_error
from lamplighter.cli.service_places import (
    MANIFEST_FILE,
    InstalledFile,
    InstalledRole,
    InstallFailed,
    InstallManifest,
    ServicePlaces,
    SystemdManager,
    delete_user,
    read_manifest,
    write_manifest,
)
from lamplighter.cli.service_units import Role, unit_to_enable
from runner.app import engine_config
from runner.engines.selection import remove_all_containers
from runner.host.enrollment import apply_enrollment
from runner.settings import RunnerSettings
from schemas.settings_loader import load_settings


@click.command()
@click.argument("roles", nargs=-1, type=click.Choice([str(role) for role in Role]), metavar="[ROLE]...")
@click.option("--data", "with_data", is_flag=True, help="Delete the data too: jobs, keys, files, backups, settings.")
@scope_options
def uninstall(roles: tuple[str, ...], with_data: bool, as_system: bool | None, root: Path, as_json: bool) -> None:
    """Stop and remove what `install` set up: ROLEs, or all of them. Data and edited settings stay without --data."""
    options = InstallOptions(as_system, only_print=False, root=root, start=False, as_json=as_json)
    with exit_on_error(EXIT_CODES):
        _Removal(options.places, with_data=with_data).remove([Role(role) for role in roles], as_json=as_json)


class _Removal:
    """The removal of roles: their services, units and files."""

    def __init__(self, places: ServicePlaces, *, with_data: bool) -> None:
        self._places, self._with_data = places, with_data
        self._manager = SystemdManager(places)
        self._config = places.on_disk(places.config)
        self._removed: list[str] = []
        self._kept: list[str] = []

    def remove(self, roles: list[Role], *, as_json: bool) -> None:
        manifest = read_manifest(self._config)
        if not roles and not manifest.roles and not (self._with_data and manifest.left):
            raise InstallFailed(f"nothing is installed here: {self._config / MANIFEST_FILE} names no service")
        if missing := [role for role in roles if role not in manifest.roles]:
            there = ", ".join(manifest.roles) or "nothing"
            raise InstallFailed(f"{missing[0]} is not installed here: {there} is")
        for role in roles or list(manifest.roles):
            self._remove_role(role, manifest.roles[role])
            manifest = manifest.without_role(role, tuple(self._kept))
            write_manifest(self._config, manifest)
        if self._with_data and not roles:
            for left in manifest.left:
                self._delete(Path(left))
            manifest = structs.replace(manifest, left=())
            write_manifest(self._config, manifest)
        if not manifest.roles:
            self._remove_shared(manifest)
        self._report(as_json=as_json)

    def _remove_role(self, role: Role, installed: InstalledRole) -> None:
        unit = unit_to_enable(role)
        if any(Path(file.path).exists() for file in installed.units):
            self._manager.call("disable", "--now", unit)
        if role is Role.RUNNER and self._with_data:
            self._remove_containers(installed)
        for file in installed.units:
            self._delete(Path(file.path))
        self._manager.call("daemon-reload")
        if installed.settings is not None:
            self._remove_settings(installed.settings)
        data = Path(installed.data)
        if self._with_data or (data.exists() and not any(data.iterdir())):
            self._delete(data)
        elif data.exists():
            self._kept.append(str(data))

    def _remove_settings(self, file: InstalledFile) -> None:
        if self._with_data or not file.is_edited:
            self._delete(Path(file.path))
        else:
            self._kept.append(file.path)

    def _remove_containers(self, installed: InstalledRole) -> None:
        """Remove the containers of jobs that the runner left for its next start, which does not come."""
        file = Path(installed.settings.path) if installed.settings else None
        text = file.read_text() if file is not None and file.exists() else ""
        settings = structs.replace(load_settings(RunnerSettings, text, {}), data=Path(installed.data))
        settings = apply_enrollment(settings)
        anyio.run(remove_all_containers, engine_config(settings), settings.installation, settings.host)

    def _remove_shared(self, manifest: InstallManifest) -> None:
        """Remove what all roles share. The user stays while it owns data."""
        state = self._places.on_disk(self._places.state)
        for folder in (state, self._config):
            with suppress(OSError):  # it is not empty, or not there
                folder.rmdir()
        if manifest.created_user is None:
            return
        if state.exists() and any(state.iterdir()):
            self._kept.append(f"the user {manifest.created_user}")
            return
        delete_user(manifest.created_user)
        write_manifest(self._config, InstallManifest())
        with suppress(OSError):
            self._config.rmdir()

    def _delete(self, path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
        else:
            return
        self._removed.append(str(path))

    def _report(self, *, as_json: bool) -> None:
        if as_json:
            sys.stdout.write(json_line({"removed": self._removed, "kept": self._kept}))
            return
        for path in self._removed:
            click.echo(say(f"removed {path}"))
        for path in self._kept:
            click.echo(say(f"kept    {path}"))
        if self._kept:
            click.echo(say(f"To delete these too: {PROGRAM} uninstall --data"))
