"""`lamplighter install`: edge, runner, relay and backups as services of systemd. `uninstall` removes them."""

import functools
import os
import pwd
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource
from msgspec import Struct, structs

from bus.interface import BusError
from bus.secret_files import TRAVERSE_ONLY_MODE, atomic_write, make_private_folder
from lamplighter.cli.context import FAILED, REFUSED, UNREACHABLE, USAGE
from lamplighter.cli.display import json_line
from lamplighter.cli.join_token import join_option, read_token
from lamplighter.cli.language import say
from lamplighter.cli.process_setup import exit_on_error
from lamplighter.cli.relay import RelaySettings, join_relay
from lamplighter.cli.service_places import (
    SERVICE_USER,
    STATE_NAME,
    InstalledFile,
    InstalledRole,
    InstallFailed,
    InstallManifest,
    ManifestUnreadable,
    ServicePlaces,
    SystemdManager,
    check_program_reachable,
    create_user,
    digest,
    find_own_program,
    find_places,
    group_exists,
    is_program_in_home,
    read_manifest,
    user_exists,
    write_manifest,
)
from lamplighter.cli.service_units import Role, ServicePlan, render_settings, render_units, unit_to_enable
from lamplighter.cli.up_options import check_public_options, public_options
from runner.assets.port import EdgeUnavailable
from runner.engines.selection import find_docker
from runner.host.enrollment import CertificateMismatch, EnrollmentUnreadable, JoinRefused, join
from runner.settings import IMAGES_DIR, RunnerSettings
from schemas.credentials import JoinTokenInvalid
from schemas.settings_loader import SettingsInvalid

F = TypeVar("F", bound=Callable[..., Any])
ROOT_USER = "root"
DOCKER_GROUP = "docker"
SETTINGS_MODE = 0o640
EXIT_CODES: dict[type[Exception], int] = {
    InstallFailed: USAGE,
    ManifestUnreadable: USAGE,
    JoinTokenInvalid: USAGE,
    EnrollmentUnreadable: USAGE,
    SettingsInvalid: USAGE,
    CertificateMismatch: REFUSED,
    JoinRefused: REFUSED,
    EdgeUnavailable: UNREACHABLE,
    BusError: UNREACHABLE,
    OSError: FAILED,
}


class InstallOptions(Struct, frozen=True):
    """The options that all roles share. `as_system`: None without --system and --user."""

    as_system: bool | None
    only_print: bool
    root: Path
    start: bool
    as_json: bool

    @property
    def places(self) -> ServicePlaces:
        """Return where things go: root installs for the system, another user for itself."""
        is_system = os.geteuid() == 0 if self.as_system is None else self.as_system
        return find_places(is_system=is_system, root=self.root)


def scope_options(command: F) -> F:
    """Add the options that `install` and `uninstall` share."""
    options = (
        click.option(
            "--system/--user",
            "as_system",
            default=None,
            help="Services of the machine (needs root), or of this user [--system for root, else --user].",
        ),
        click.option(
            "--root",
            type=click.Path(path_type=Path, file_okay=False, exists=True),
            default=Path("/"),
            help="Write below this folder, for the image of another machine; nothing is started.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one line of JSON."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _role_command(role: Role) -> Callable[[Callable[..., ServicePlan]], click.Command]:
    """Make a command of `install` from a function that builds the role's plan from its options."""

    def decorate(build_plan: Callable[..., ServicePlan]) -> click.Command:
        @click.option("--print", "only_print", is_flag=True, help="Print the files, and change nothing.")
        @click.option("--start/--no-start", default=True, help="Start the service now, if systemd runs.")
        @scope_options
        @click.pass_context
        @functools.wraps(build_plan)
        def command(context: click.Context, /, **given: Any) -> None:
            shared = {name: given.pop(name) for name in InstallOptions.__struct_fields__}
            token = given.pop("token", None)
            with exit_on_error(EXIT_CODES):
                _Installation(InstallOptions(**shared), role, build_plan).install(_named(context, given), given, token)

        return install.command(str(role))(command)

    return decorate


def _named(context: click.Context, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given on the command line."""
    return {
        name: value
        for name, value in given.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


@click.group()
def install() -> None:
    """Set up edge, runner, relay or backups as services of systemd that start with the machine."""


class _Installation:
    """One role while it is installed."""

    def __init__(self, options: InstallOptions, role: Role, build_plan: Callable[..., ServicePlan]) -> None:
        self._options, self._role, self._build_plan = options, role, build_plan
        self._places = options.places
        self._manager = SystemdManager(self._places)
        self._config = self._places.on_disk(self._places.config)

    def install(self, named: Mapping[str, Any], given: Mapping[str, Any], token: str | None) -> None:
        """Write the units and what they need, and start the service. Options of an earlier call hold until changed."""
        manifest = read_manifest(self._config)
        earlier = manifest.roles.get(self._role)
        kept = {**(earlier.options if earlier else {}), **_as_json(named)}
        plan = self._build_plan(self._places, **{**given, **kept})
        units = render_units(plan, **({"calendar": kept["calendar"]} if "calendar" in kept else {}))
        settings = render_settings(self._role, IMAGES_DIR, is_system=self._places.is_system)
        if self._options.only_print:
            self._print_files(units, settings)
            return
        self._check(plan)
        created = self._create_user(plan, manifest)
        mine = {str(self._places.on_disk(path)) for path in (plan.data, self._places.settings(self._role))}
        left = tuple(path for path in manifest.left if path not in mine)
        manifest = structs.replace(manifest, created_user=created, left=left)
        if token is not None:
            self._join(plan, token)
        changed = self._write(plan, units, settings, manifest, kept)
        self._start(plan, changed=changed or token is not None)

    def _check(self, plan: ServicePlan) -> None:
        """Refuse what cannot work before anything is written."""
        if self._places.root != Path("/"):
            return
        if plan.is_system and os.geteuid() != 0:
            raise InstallFailed(
                "--system writes to /etc/systemd/system and makes a user, which only root may do: use sudo, or --user"
            )
        if plan.user not in {None, ROOT_USER}:
            check_program_reachable(plan.argv[:1], str(plan.user))
        if plan.user not in {None, ROOT_USER, SERVICE_USER} and not user_exists(str(plan.user)):
            raise InstallFailed(f"there is no user {plan.user} on this machine: create it, or omit --run-as")

    def _create_user(self, plan: ServicePlan, manifest: InstallManifest) -> str | None:
        """Create the user of the services if this machine does not have it. Return the user that `install` has made."""
        if plan.user != SERVICE_USER or self._places.root != Path("/") or user_exists(SERVICE_USER):
            return manifest.created_user
        create_user(SERVICE_USER, self._places.state)
        return SERVICE_USER

    def _write(
        self,
        plan: ServicePlan,
        units: Mapping[str, str],
        settings: str | None,
        manifest: InstallManifest,
        options: dict[str, Any],
    ) -> bool:
        """Write the manifest, then the files: after a crash `uninstall` knows each file that may be there.

        Return whether a unit is new or has changed.
        """
        earlier = manifest.roles.get(self._role)
        kept = earlier.settings if earlier else None
        file = self._places.settings(self._role)
        is_new = settings is not None and not self._places.on_disk(file).exists()
        if settings is not None and (is_new or kept is None):
            kept = InstalledFile(str(self._places.on_disk(file)), digest(settings.encode()))
        paths = {self._places.on_disk(self._places.units / name): text for name, text in units.items()}
        written = tuple(InstalledFile(str(path), digest(text.encode())) for path, text in paths.items())
        installed = InstalledRole(written, kept, str(self._places.on_disk(plan.data)), options)
        self._make_folders(plan)
        write_manifest(self._config, manifest.with_role(self._role, installed))
        if settings is not None and is_new:
            self._write_settings(self._places.on_disk(file), settings, plan)
        changed = [path for path, text in paths.items() if not path.exists() or path.read_text() != text]
        for path in changed:
            atomic_write(path, paths[path], 0o644)
        self._report(paths, changed, kept, is_new=is_new)
        return bool(changed)

    def _make_folders(self, plan: ServicePlan) -> None:
        for folder in (self._places.units, self._places.config):
            made = self._places.on_disk(folder)
            if not made.exists():
                made.mkdir(parents=True)
                made.chmod(0o755)  # whatever the umask: the service's user has to read what is in it
        for folder in (plan.data, *plan.writes):
            path = self._places.on_disk(folder)
            if not path.exists():  # the rights of one that exists are somebody's choice
                make_private_folder(path, TRAVERSE_ONLY_MODE)
                self._give_to_user(path, plan)

    def _write_settings(self, file: Path, text: str, plan: ServicePlan) -> None:
        """Write the settings file so that the service can read it and other users cannot: it may hold keys."""
        atomic_write(file, text, SETTINGS_MODE if plan.is_system else 0o600)
        if self._places.root == Path("/") and plan.user is not None:
            os.chown(file, -1, pwd.getpwnam(plan.user).pw_gid)

    def _give_to_user(self, path: Path, plan: ServicePlan) -> None:
        if self._places.root == Path("/") and plan.user is not None:
            user = pwd.getpwnam(plan.user)
            os.chown(path, user.pw_uid, user.pw_gid)

    def _join(self, plan: ServicePlan, token: str) -> None:
        """Join before anything else is written: a token that is refused leaves nothing."""
        data = self._places.on_disk(plan.data)
        if self._role is Role.RELAY:
            join_relay(RelaySettings(data=data), read_token(token))
        else:
            join(RunnerSettings(data=data), read_token(token))
        for path in (data, *data.iterdir()):
            self._give_to_user(path, plan)

    def _start(self, plan: ServicePlan, *, changed: bool) -> None:
        unit = unit_to_enable(plan.role)
        self._manager.call("daemon-reload")
        self._manager.call("enable", unit)
        if self._options.start:
            # Without waiting: a runner is ready when its broker and its engine answer, which may be later.
            self._manager.call("--no-block", "restart" if changed else "start", unit)

    def _print_files(self, units: Mapping[str, str], settings: str | None) -> None:
        texts = {str(self._places.units / name): text for name, text in units.items()}
        if settings is not None:
            texts[str(self._places.settings(self._role))] = settings
        if self._options.as_json:
            sys.stdout.write(json_line(texts))
            return
        click.echo("\n".join(f"#### {path}\n{text}" for path, text in texts.items()), nl=False)

    def _report(
        self, paths: Mapping[Path, str], changed: list[Path], settings: InstalledFile | None, *, is_new: bool
    ) -> None:
        written = [str(path) for path in changed]
        kept = [str(path) for path in paths if path not in changed]
        if settings is not None:
            (written if is_new else kept).append(settings.path)
        unit = unit_to_enable(self._role)
        answer = {"unit": unit, "written": written, "kept": kept, "systemd": self._manager.is_running}
        if self._options.as_json:
            sys.stdout.write(json_line(answer))
            return
        for path in written:
            click.echo(say(f"wrote {path}"))
        for path in kept:
            click.echo(say(f"kept  {path}"))
        who = "" if self._places.is_system else "--user "
        if not self._manager.is_running:
            click.echo(say(f"systemd does not run here, so nothing was started: systemctl {who}enable --now {unit}"))
        click.echo(say(f"Its log: journalctl {who}-u {self._role.service} -f"))
        if not self._places.is_system:
            click.echo(say("To start it at boot, before you log in: sudo loginctl enable-linger $USER"))


def _as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as the manifest keeps them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}


run_as_option = click.option(
    "--run-as", metavar="USER", help=f"The user of the service, with --system [{SERVICE_USER}]."
)


def _make_plan(places: ServicePlaces, role: Role, words: tuple[str, ...], user: str | None, **more: Any) -> ServicePlan:
    program = find_own_program()
    return ServicePlan(
        role=role,
        argv=(*program, *words),
        data=places.data(role),
        state=f"{STATE_NAME}/{places.data(role).name}" if places.is_system else None,
        user=(user or SERVICE_USER) if places.is_system else None,
        program_in_home=is_program_in_home(program[:1]),
        **more,
    )


@_role_command(Role.EDGE)
@click.option("--port", type=click.IntRange(1, 65535), help="The port on loopback [that of the settings, or 8000].")
@public_options
@run_as_option
def install_edge(
    places: ServicePlaces,
    *,
    port: int | None,
    run_as: str | None,
    **public: Any,
) -> ServicePlan:
    """Install the edge with its broker: `lamplighter up --no-runner`."""
    check_public_options(public)
    words = ["up", "--no-runner", "--no-log-files", "--data", str(places.data(Role.EDGE))]
    words += ["--config", str(places.settings(Role.EDGE))]
    words += ["--port", str(port)] if port else []
    if public["names"]:
        words += [word for name in public["names"] for word in ("--public", name)]
        words += ["--listen", public["listen"], "--tls-port", str(public["tls_port"])]
        words += ["--broker-port", str(public["broker_port"])]
    if public["cert"]:
        words += ["--cert", str(Path(public["cert"]).absolute()), "--key", str(Path(public["key_file"]).absolute())]
    return _make_plan(places, Role.EDGE, tuple(words), run_as)


@_role_command(Role.RUNNER)
@join_option
@run_as_option
def install_runner(places: ServicePlaces, *, run_as: str | None) -> ServicePlan:
    """Install the runner of this host.

    It runs as the user lamplighter with the group docker. Where there is no Docker, it runs as root, and its jobs as
    the user nobody.
    """
    has_docker = find_docker(None, {}) is not None
    in_group = has_docker and group_exists(DOCKER_GROUP)
    user = run_as or (SERVICE_USER if in_group else ROOT_USER)
    return _make_plan(
        places,
        Role.RUNNER,
        ("runner", "--config", str(places.settings(Role.RUNNER))),
        user,
        groups=(DOCKER_GROUP,) if in_group and user != ROOT_USER else (),
        environ={"LAMPLIGHTER_DATA": str(places.data(Role.RUNNER))},
        isolated_jobs=has_docker and user != ROOT_USER,
    )


@_role_command(Role.RELAY)
@join_option
@run_as_option
def install_relay(places: ServicePlaces, *, run_as: str | None) -> ServicePlan:
    """Install the relay, which powers hosts of this network on and off for an edge elsewhere."""
    words = ("relay", "--config", str(places.settings(Role.RELAY)))
    environ = {"LAMPLIGHTER_DATA": str(places.data(Role.RELAY))}
    return _make_plan(places, Role.RELAY, words, run_as, environ=environ)


@_role_command(Role.BACKUP)
@click.option("--to", "folder", type=click.Path(path_type=Path, file_okay=False), help="Where backups go.")
@click.option("--keep", type=click.IntRange(1), default=7, show_default=True, help="How many backups stay.")
@click.option("--at", "calendar", default="daily", show_default=True, help="When, in the format of systemd.time(7).")
@click.option("--assets", is_flag=True, help="Include the content of all files.")
@click.option("--key-file", type=click.Path(path_type=Path, dir_okay=False), help="Encrypt with the key in this file.")
@run_as_option
def install_backup(  # noqa: PLR0913 - the options of `backup`
    places: ServicePlaces,
    *,
    folder: Path | str | None,
    keep: int,
    calendar: str,
    assets: bool,
    key_file: Path | str | None,
    run_as: str | None,
) -> ServicePlan:
    """Install a timer that backs up the edge installed here, and keeps the newest backups."""
    del calendar  # the timer has it
    target = Path(folder).absolute() if folder else places.data(Role.BACKUP)
    words = ["backup", str(target), "--keep", str(keep), "--data", str(places.data(Role.EDGE))]
    words += ["--assets"] if assets else []
    words += ["--key-file", str(Path(key_file).absolute())] if key_file else []
    writes = (places.data(Role.EDGE), *((target,) if folder else ()))
    return _make_plan(places, Role.BACKUP, tuple(words), run_as, writes=writes)
