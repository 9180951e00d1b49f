"""Structured logging of the processes that the command line starts: one line an event, on stderr."""

import logging
import sys
from contextlib import suppress
from typing import Any

import structlog

from lamplighter.cli.terminal import visible

SECRETS = frozenset({"key", "password", "secret", "token", "authorization"})


class _Stderr(structlog.WriteLogger):
    """It loses a line rather than end its writer: the log lies on a disk that may be full."""

    def msg(self, message: str) -> None:
        with suppress(OSError):
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def _without_secrets(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """Nothing that is named like a secret is ever written."""
    return {name: "***" if name in SECRETS else value for name, value in event.items()}


def _visible(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """What others sent is not obeyed by the terminal that shows the log."""
    return {name: visible(value) if isinstance(value, str) else value for name, value in event.items()}


def hush() -> None:
    """Keep from the terminal what asyncio says whenever nats-py ends a TLS connection: it is nothing to anybody."""
    logging.getLogger("asyncio").addFilter(_of_use)


def _of_use(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("returning true from eof_received()")


def configure(level: str, form: str) -> None:
    """Send every structlog event of this process to stderr, as JSON or as text; foreign loggers from WARNING up."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_secrets,
    ]
    # The plain formatter: the others print local variables, and a key or a password may be among them.
    plain = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
    last: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if form == "json"
        else [_visible, plain]
    )
    structlog.configure(
        processors=shared + last,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _Stderr(sys.stderr),
    )
    hush()
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
