"""The settings and options of `up`, from lamplighter.toml, variables and the command line, and its public access.

`up` reads the file that every other command reads, so declared hosts, limits and quotas count. An option of the command
line replaces a setting. What `up` needs to decide itself must not be set to something else: neither value could win
without a surprise.

The options of `--public` open `up` to other machines: edge and broker with TLS, under one certificate.
"""

import os
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import anyio
import anyio.to_thread
import click
import msgspec
import structlog
from msgspec import Struct

from bus.secret_files import atomic_write
from bus.server.config import TlsFiles
from bus.server.process import LOOPBACK_ANY_PORT, NatsServer
from edge.core.clock import utc_now
from edge.server.certificate import (
    RENEWAL_CHECK_INTERVAL_S,
    CertificateUnusable,
    FileStamps,
    PublicKeyChanged,
    check_key_pair,
    is_trusted_here,
    load_or_create_certificate,
    read_key_digest,
    read_stamps,
)
from edge.settings import EdgeSettings
from lamplighter.cli.context import USAGE
from lamplighter.cli.language import say
from lamplighter.cli.process_setup import SettingsFile
from runner.settings import RunnerSettings
from schemas.certificates import first_certificate, read_certificate
from schemas.outbound_rules import is_loopback
from schemas.settings_loader import SettingsInvalid, find_variable, merge_given
from schemas.settings_schema import show

F = TypeVar("F", bound=Callable[..., Any])

OPTION_SETTINGS: Mapping[str, str] = {
    "--port": "port",
    "--data": "data",
    "--engine": "engine",
    "--endpoints": "endpoints",
    "--slots": "slots",
    "--grace": "grace_s",
    "--easy-port": "heygem.keyless_port",
}
_OWN_PROCESSES = "remove it; `lamplighter edge` and `lamplighter runner` work with a broker of your own"
_PUBLIC = "remove it; `up` opens itself to other machines with --public NAME"
# Settings that `up` decides itself, and what to do instead.
REFUSED_SETTINGS: Mapping[str, str] = {
    "bind": _PUBLIC,
    "fd": _OWN_PROCESSES,
    "broker": _OWN_PROCESSES,
    "edge": _OWN_PROCESSES,
    "installation": _OWN_PROCESSES,
    "enrollment": _OWN_PROCESSES,
    "public.listen": _PUBLIC,
    "public.url": _PUBLIC,
    "public.broker": _PUBLIC,
    "public.cert": _PUBLIC,
    "public.key": _PUBLIC,
    "public.broker_cert": _PUBLIC,
}

log = structlog.get_logger()


class UpSettings(NamedTuple):
    """The settings of the two processes, and the names of those that the file or a variable sets."""

    edge: EdgeSettings
    runner: RunnerSettings
    given: Mapping[str, Any]

    def is_given(self, name: str) -> bool:
        """Return whether the file or a variable sets `name`."""
        return _find(self.given, name) is not None


def load_up_settings(file: SettingsFile, environ: Mapping[str, str]) -> UpSettings:
    """Return the settings for `up`. Raises SettingsInvalid, also for what `up` decides itself."""
    kinds = (EdgeSettings, RunnerSettings)
    given: dict[str, Any] = {}
    for kind in kinds:
        given |= merge_given(kind, file.text, environ, str(file.path))
    for line in _contradictions(given, file, environ):
        raise SettingsInvalid(line)
    return UpSettings(file.load(EdgeSettings, environ), file.load(RunnerSettings, environ), given)


def _contradictions(given: Mapping[str, Any], file: SettingsFile, environ: Mapping[str, str]) -> Iterator[str]:
    for name, instead in REFUSED_SETTINGS.items():
        value = _find(given, name)
        if value is None or (name == "bind" and is_loopback(str(value))):
            continue
        first = f"{name}.{next(iter(value))}" if isinstance(value, dict) and value else name
        where = find_variable(first, environ) or file.path
        yield f"{first} is {show(value, isinstance(value, dict))} in {where}, but `up` decides it: {instead}"


def _find(given: Mapping[str, Any], name: str) -> Any:
    branch: Any = given
    for part in name.split("."):
        if not isinstance(branch, dict) or part not in branch:
            return None
        branch = branch[part]
    return branch


def config_variable(file: SettingsFile) -> str:
    """Return the file that edge and runner read: an absolute path, or the null device without one."""
    return str(file.path.resolve()) if file.path.exists() else os.devnull


SERVED_FILE = Path("tls") / "served.pem"


ALL_INTERFACES = "0.0.0.0"  # noqa: S104 - used only with --public


class PublicOptions(Struct, frozen=True, kw_only=True):
    """The option `--public` and its companions. Nothing is opened without `names`, how other machines call this one."""

    names: tuple[str, ...]
    listen: str
    tls_port: int
    broker_port: int
    cert: Path | None = None
    key_file: Path | None = None


def public_options(command: F) -> F:
    """Add the options of PublicOptions to `up`."""
    port, file = click.IntRange(1, 65535), click.Path(path_type=Path, dir_okay=False)
    options = (
        click.option(
            "--public",
            "names",
            multiple=True,
            metavar="NAME",
            help="Let other machines join: a name or address under which they reach this one. May be repeated.",
        ),
        click.option("--cert", type=file, help="With --public: your own certificate, as PEM, with its chain."),
        click.option("--key", "key_file", type=file, help="With --public: the key of --cert, as PEM."),
        click.option("--listen", default=ALL_INTERFACES, show_default=True, help="With --public: the address to bind."),
        click.option(
            "--tls-port",
            type=port,
            default=8443,
            show_default=True,
            help="With --public: the port of the edge with TLS.",
        ),
        click.option(
            "--broker-port", type=port, default=4222, show_default=True, help="With --public: the port of the broker."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def check_public_options(given: Mapping[str, object]) -> None:
    """Refuse a certificate without its key, and either without --public. Raises UsageError."""
    if (given["cert"] is None) != (given["key_file"] is None):
        raise click.UsageError("--cert and --key belong together: give both, or neither")
    if given["cert"] is not None and not given["names"]:
        raise click.UsageError("--cert and --key need --public NAME: a name for which the certificate is valid")


class PublicAccess:
    """The broker server and the environment of the processes, by the options.

    Edge and broker serve a copy of the certificate and its key, in one file that is replaced as a whole. So neither
    ever reads a pair of which a program has written one half. Without `cert` and `key_file` both are made once.
    """

    def __init__(self, options: PublicOptions, data: Path, *, log_to_stderr: bool = False) -> None:
        self._options = options
        self._served = data / SERVED_FILE
        self._source = _find_certificate(data, options) if options.names else None
        self._tls = TlsFiles(self._served, self._served) if options.names else None
        self._stamps: FileStamps = None
        self._is_pinned = True
        if self._source is not None:
            self._stamps = read_stamps(self._source)
            self._is_pinned = self._copy_first(self._source)
        listen = _host_port(options.listen, options.broker_port) if options.names else LOOPBACK_ANY_PORT
        self.server = NatsServer(data / "broker", listen=listen, tls=self._tls, log_to_stderr=log_to_stderr)
        self._folder = data / "broker"

    @property
    def pin(self) -> str | None:
        """The certificate that all clients of the broker trust, also our own processes."""
        return str(self._tls.cert) if self._tls else None

    @property
    def url(self) -> str | None:
        """The address of the edge for other machines."""
        name = _bracket_ipv6(self._options.names[0]) if self._options.names else None
        return name and f"https://{name}:{self._options.tls_port}"

    @property
    def public_pin(self) -> str | None:
        """The value of `--pin` for clients elsewhere; None if an authority signed the certificate."""
        if self._tls is None or not self._is_pinned:
            return None
        return read_certificate(first_certificate(self._tls.cert.read_text())).pin

    async def watch_certificate(self) -> None:
        """Copy the certificate and its key whenever their files change to a usable pair. Without end."""
        while self._source is not None:
            await anyio.sleep(RENEWAL_CHECK_INTERVAL_S)
            await anyio.to_thread.run_sync(self._copy_if_changed, self._source)

    def _copy_if_changed(self, source: TlsFiles) -> None:
        stamps = read_stamps(source)
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            _check_pair(source)
            if self._is_pinned:
                _check_same_key(source, TlsFiles(self._served, self._served))
            _write_copy(source, self._served)
        except (CertificateUnusable, OSError, ValueError, PublicKeyChanged) as error:
            log.warning("certificate_renewal_failed", cert=str(source.cert), error=str(error))
        else:
            log.info("certificate_renewed", cert=str(source.cert))

    def _copy_first(self, source: TlsFiles) -> bool:
        """Copy the pair and return whether hosts pin its key, because they could not verify it otherwise."""
        try:
            context = _check_pair(source)
            _write_copy(source, self._served)
        except (CertificateUnusable, OSError) as error:
            _exit(str(error))
        return not is_trusted_here(context, self._options.names[0])

    def shared_environ(self) -> dict[str, str]:
        """Return variables for edge and runner."""
        return {"LAMPLIGHTER_BROKER__PIN": self.pin} if self.pin else {}

    def edge_environ(self) -> dict[str, str]:
        """Return variables for the edge: its TLS address, and how hosts enroll."""
        if self._tls is None:
            return {}
        options, name = self._options, _bracket_ipv6(self._options.names[0])
        return {
            "LAMPLIGHTER_PUBLIC__LISTEN": _host_port(options.listen, options.tls_port),
            "LAMPLIGHTER_PUBLIC__URL": f"https://{name}:{options.tls_port}",
            "LAMPLIGHTER_PUBLIC__BROKER": f"tls://{name}:{options.broker_port}",
            "LAMPLIGHTER_PUBLIC__CERT": str(self._tls.cert),
            "LAMPLIGHTER_PUBLIC__KEY": str(self._tls.key),
            **({} if self._is_pinned else {"LAMPLIGHTER_PUBLIC__PIN": "0"}),
            "LAMPLIGHTER_ENROLLMENT__NATS_CONF_DIR": str(self._folder),
            "LAMPLIGHTER_ENROLLMENT__RELOAD_COMMAND": msgspec.json.encode(self.server.reload_command).decode(),
        }


def _find_certificate(data: Path, options: PublicOptions) -> TlsFiles:
    """Return the files of the operator, or those that are made once."""
    if options.cert is not None and options.key_file is not None:
        return TlsFiles(options.cert.resolve(), options.key_file.resolve())
    try:
        return load_or_create_certificate(data / "tls", options.names, utc_now())
    except (OSError, ValueError) as error:
        _exit(f"cannot create a certificate for {', '.join(options.names)} ({error}): correct --public")


def _check_pair(source: TlsFiles) -> ssl.SSLContext:
    return check_key_pair(source, "--cert", "--key", "give a certificate and its key")


def _check_same_key(source: TlsFiles, served: TlsFiles) -> None:
    if read_key_digest(source) != read_key_digest(served):
        raise PublicKeyChanged


def _write_copy(source: TlsFiles, served: Path) -> None:
    """Write certificate and key into one file: a program that reads one of the two skips the other."""
    served.parent.mkdir(mode=0o700, exist_ok=True)
    atomic_write(served, f"{source.cert.read_text().rstrip()}\n{source.key.read_text()}")


def _exit(why: str) -> NoReturn:
    click.echo(f"lamplighter: {say(why)}", err=True)
    sys.exit(USAGE)


def _bracket_ipv6(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _host_port(host: str, port: int) -> str:
    return f"{_bracket_ipv6(host)}:{port}"
