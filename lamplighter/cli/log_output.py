"""The log of a process: one line for each event on stderr, as JSON or text, without secrets.

If stderr is systemd's journal, each line is sent as an entry with fields (`journal`), so that `journalctl -p warning`
and `journalctl LAMPLIGHTER_JOB_ID=…` find it. If journald does not take it, the line goes to stderr and begins with its
priority (sd-daemon(3)).
"""

import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from types import TracebackType
from typing import Any

import structlog

from lamplighter.cli.display import escape_controls, json_line
from lamplighter.cli.journal import JOURNAL_SOCKET, indexed_fields, is_stderr_journal, send_entry
from lamplighter.cli.redaction import Redactor, mask_fields

_ERROR, _WARNING, _INFO, _DEBUG = 3, 4, 6, 7  # of syslog(3)
_PRIORITY_BY_LEVEL = ((logging.ERROR, _ERROR), (logging.WARNING, _WARNING), (logging.INFO, _INFO))


def _priority(level: int) -> int:
    return next((priority for least, priority in _PRIORITY_BY_LEVEL if level >= least), _DEBUG)


def _prefix_lines(text: str, priority: int) -> str:
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


_Write = Callable[[str, int, Mapping[str, str]], None]  # a line, its priority, and the fields that journald indexes
_NO_FIELDS: Mapping[str, str] = {}


def _write_stderr(line: str, _: int = _INFO, __: Mapping[str, str] = _NO_FIELDS) -> None:
    """Write a line. Loses it instead of raising: the disk of the log may be full."""
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:  # not `suppress`, which takes as long as the rest: each request writes a line
        return


def _write_journal(line: str, priority: int, fields: Mapping[str, str]) -> None:
    try:
        send_entry(JOURNAL_SOCKET, line, priority, fields)
    except OSError:
        _write_stderr(_prefix_lines(line, priority))


class _LineLogger:
    """The logger under structlog: writes lines that are rendered already."""

    def __init__(self, write: _Write) -> None:
        self._write = write

    def debug(self, message: str, fields: Mapping[str, str] = _NO_FIELDS) -> None:
        self._write(message, _DEBUG, fields)

    def info(self, message: str, fields: Mapping[str, str] = _NO_FIELDS) -> None:
        self._write(message, _INFO, fields)

    def warning(self, message: str, fields: Mapping[str, str] = _NO_FIELDS) -> None:
        self._write(message, _WARNING, fields)

    def error(self, message: str, fields: Mapping[str, str] = _NO_FIELDS) -> None:
        self._write(message, _ERROR, fields)

    msg = log = info
    warn = warning
    fatal = failure = err = critical = exception = error


class _SafeRenderer:
    """The last processor: renders a line and removes its secrets, also from tracebacks and nested values."""

    def __init__(self, render: Callable[[dict[str, Any]], str], redactor: Redactor) -> None:
        self._render, self._redactor = render, redactor

    def __call__(self, _: Any, __: str, event: MutableMapping[str, Any]) -> str:
        return self._redactor.redact(self._render(mask_fields(event)))


class _JournalRenderer:
    """The last processor if stderr is the journal: the same line, and the fields that journald indexes."""

    def __init__(self, render: _SafeRenderer, redactor: Redactor) -> None:
        self._render, self._redactor = render, redactor

    def __call__(self, logger: Any, name: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
        fields = {field: self._redactor.redact(text) for field, text in indexed_fields(event).items()}
        return {"message": self._render(logger, name, event), "fields": fields}


class _LibraryHandler(logging.Handler):
    """Writes the lines of other libraries' loggers, without secrets."""

    def __init__(self, write: _Write, redactor: Redactor) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._write_line, self._redactor = write, redactor

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._redactor.redact(self.format(record))
        except Exception:
            self.handleError(record)
        else:
            self._write_line(line, _priority(record.levelno), _NO_FIELDS)


def silence_tls_warning() -> None:
    """Drop the warning that asyncio logs whenever nats-py closes a TLS connection. It has no consequence."""
    logging.getLogger("asyncio").addFilter(_is_not_tls_warning)


def _is_not_tls_warning(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("returning true from eof_received()")


def _render_json(event: dict[str, Any]) -> str:
    return json_line(event, str).removesuffix("\n")


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
    redactor, has_journal = Redactor(secrets), is_stderr_journal()
    write: _Write = _write_journal if has_journal else _write_stderr
    render = _SafeRenderer(_render_json if form == "json" else _make_text_renderer(), redactor)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if form == "json" else []),
            _JournalRenderer(render, redactor) if has_journal else render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _LineLogger(write),
    )
    silence_tls_warning()
    logging.basicConfig(level=logging.WARNING, handlers=[_LibraryHandler(write, redactor)])
    sys.excepthook = _print_uncaught(redactor)
