"""The options of `up` that open it to other machines: edge and broker with TLS, under one certificate."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from msgspec import Struct

from bus.server.config import TlsFiles
from bus.server.process import LOOPBACK_ANY_PORT, NatsServer
from edge.core.clock import utc_now
from edge.tls import load_or_create_certificate
from lamplighter.cli.context import USAGE

F = TypeVar("F", bound=Callable[..., Any])
ALL_INTERFACES = "0.0.0.0"  # noqa: S104 - used only with --public


class PublicOptions(Struct, frozen=True, kw_only=True):
    """The option `--public` and its companions. Nothing is opened without `names`, how other machines call this one."""

    names: tuple[str, ...]
    listen: str
    tls_port: int
    broker_port: int


def public_options(command: F) -> F:
    """Add the options of PublicOptions to `up`."""
    port = click.IntRange(1, 65535)
    options = (
        click.option(
            "--public",
            "names",
            multiple=True,
            metavar="NAME",
            help="Let other machines join: a name or address under which they reach this one. May be repeated.",
        ),
        click.option("--listen", default=ALL_INTERFACES, show_default=True, help="With --public: the address to bind."),
        click.option("--tls-port", type=port, default=8443, show_default=True, help="With --public: the edge, by TLS."),
        click.option("--broker-port", type=port, default=4222, show_default=True, help="With --public: the broker."),
    )
    for option in reversed(options):
        command = option(command)
    return command


class PublicAccess:
    """The broker server and the environment of the processes, by the options. The certificate is made once."""

    def __init__(self, options: PublicOptions, data: Path, *, log_to_stderr: bool = False) -> None:
        self._options = options
        self._tls = _ensure_certificate(data, options.names) if options.names else None
        listen = _host_port(options.listen, options.broker_port) if options.names else LOOPBACK_ANY_PORT
        self.server = NatsServer(data / "broker", listen=listen, tls=self._tls, log_to_stderr=log_to_stderr)
        self._folder = data / "broker"

    @property
    def pin(self) -> str | None:
        """The certificate that all clients of the broker trust, also our own processes."""
        return str(self._tls.cert) if self._tls else None

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
            "LAMPLIGHTER_ENROLLMENT__NATS_CONF_DIR": str(self._folder),
            "LAMPLIGHTER_ENROLLMENT__RELOAD_COMMAND": msgspec.json.encode(self.server.reload_command).decode(),
        }


def _ensure_certificate(data: Path, names: tuple[str, ...]) -> TlsFiles:
    try:
        return load_or_create_certificate(data / "tls", names, utc_now())
    except (OSError, ValueError) as error:
        click.echo(
            f"lamplighter: cannot create a certificate for {', '.join(names)} ({error}): correct --public", err=True
        )
        sys.exit(USAGE)


def _bracket_ipv6(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _host_port(host: str, port: int) -> str:
    return f"{_bracket_ipv6(host)}:{port}"
