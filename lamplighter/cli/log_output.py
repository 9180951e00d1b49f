"""The log of a process: one line for each event on stderr, as JSON or text, without secrets.

If stderr is systemd's journal, each line begins with its priority (sd-daemon(3)), which journald takes as the field
PRIORITY, so that `journalctl -p warning` works.
"""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any

import msgspec
import structlog

from lamplighter.cli.display import escape_controls, json_line
from lamplighter.cli.redaction import Redactor, mask_fields

JOURNAL_VARIABLE = "JOURNAL_STREAM"  # systemd sets it to the device and inode of the journal's socket
_ERROR, _WARNING, _INFO, _DEBUG = 3, 4, 6, 7  # of syslog(3)
_PRIORITY_BY_LEVEL = ((logging.ERROR, _ERROR), (logging.WARNING, _WARNING), (logging.INFO, _INFO))


def is_journal(fd: int) -> bool:
    """Return whether the journal of systemd reads what is written to `fd`."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get(JOURNAL_VARIABLE) == f"{found.st_dev}:{found.st_ino}"


def _stderr_is_journal() -> bool:
    try:
        return is_journal(sys.stderr.fileno())
    except (OSError, ValueError):  # a stderr without a file, as in tests
        return False


def _priority(level: int) -> int:
    return next((priority for least, priority in _PRIORITY_BY_LEVEL if level >= least), _DEBUG)


def _prefix_lines(text: str, priority: int) -> str:
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


class _StderrLogger:
    """A logger that loses a line instead of raising: the disk of the log may be full."""

    def __init__(self, *, journal: bool) -> None:
        self._stream, self._journal = sys.stderr, journal

    def _write(self, message: str, priority: int) -> None:
        line = _prefix_lines(message, priority) if self._journal else message
        with suppress(OSError):
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def debug(self, message: str) -> None:
        self._write(message, _DEBUG)

    def info(self, message: str) -> None:
        self._write(message, _INFO)

    def warning(self, message: str) -> None:
        self._write(message, _WARNING)

    def error(self, message: str) -> None:
        self._write(message, _ERROR)

    msg = log = info
    warn = warning
    fatal = failure = err = critical = exception = error


class _SafeRenderer:
    """The last processor: renders a line and removes its secrets, also from tracebacks and nested values."""

    def __init__(self, render: Callable[[dict[str, Any]], str], redactor: Redactor) -> None:
        self._render, self._redactor = render, redactor

    def __call__(self, _: Any, __: str, event: dict[str, Any]) -> str:
        return self._redactor.redact(self._render(mask_fields(event)))


class _SafeFormatter(logging.Formatter):
    """Formats a line of another library's logger, without secrets."""

    def __init__(self, redactor: Redactor, *, journal: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._redactor, self._journal = redactor, journal

    def format(self, record: logging.LogRecord) -> str:
        line = self._redactor.redact(super().format(record))
        return _prefix_lines(line, _priority(record.levelno)) if self._journal else line


def silence_tls_warning() -> None:
    """Drop the warning that asyncio logs whenever nats-py closes a TLS connection. It has no consequence."""
    logging.getLogger("asyncio").addFilter(_is_not_tls_warning)


def _is_not_tls_warning(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("returning true from eof_received()")


def _render_json(event: dict[str, Any]) -> str:
    return json_line(msgspec.to_builtins(event, enc_hook=str)).rstrip("\n")


def _make_text_renderer() -> Callable[[dict[str, Any]], str]:
    # The other traceback formatters print local variables, and a key or a password may be among them.
    plain = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)

    def render(event: dict[str, Any]) -> str:
        # A terminal that shows the log must not obey text of others.
        safe = {name: escape_controls(value) if isinstance(value, str) else value for name, value in event.items()}
        return plain(None, "", safe)

    return render


def _print_uncaught(redactor: Redactor) -> Callable[..., None]:
    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(redactor.redact("".join(traceback.format_exception(kind, error, trace))))

    return report


def configure_logging(level: str, form: str, secrets: Iterable[str] = ()) -> None:
    """Send the structlog events of this process to stderr, as JSON or text, and other loggers from WARNING up.

    `secrets`: texts that no line may have, besides those that look like a secret.
    """
    redactor, journal = Redactor(secrets), _stderr_is_journal()
    rendering: list[Any] = (
        [structlog.processors.format_exc_info, _SafeRenderer(_render_json, redactor)]
        if form == "json"
        else [_SafeRenderer(_make_text_renderer(), redactor)]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *rendering,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _StderrLogger(journal=journal),
    )
    silence_tls_warning()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_SafeFormatter(redactor, journal=journal))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    sys.excepthook = _print_uncaught(redactor)
