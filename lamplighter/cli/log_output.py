"""The log of a process: one line for each event on stderr, as JSON or text, without secrets.

Keys, tokens, passwords, signatures, and the queries of URLs are removed from each line.

If stderr is systemd's journal, each line is sent as an entry with fields by the journal's native protocol
(systemd.io/JOURNAL_NATIVE_PROTOCOL), so that `journalctl -p warning` and `journalctl LAMPLIGHTER_JOB_ID=…` find it. One
datagram is one entry. An entry that is too large for a datagram is sent as a sealed file in memory. If journald does
not take it, the line goes to stderr and begins with its priority (sd-daemon(3)).

`up` rotates the log files of its processes: they keep writing to one file, whose content moves to numbered copies.
"""

import array
import errno
import fcntl
import json
import logging
import os
import re
import shutil
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import structlog
from msgspec import Struct, structs

from bus.settings import BrokerSettings
from lamplighter.cli.display import escape_controls, json_line
from schemas.settings_schema import SECRET_MASK, metadata_extra

# Fields of a log line, and parameters and headers, whose values are never shown.
SECRET_FIELDS = frozenset({"key", "password", "secret", "token", "authorization", "cookie", "signature", "ticket"})
_SHORTEST_SECRET_LENGTH = 8  # a shorter setting is a word that may stand in any line

_HEADERS = r"(?:proxy-)?authorization|(?:set-)?cookie|x-api-key|webhook-signature"
_PARAMETERS = "|".join(sorted(SECRET_FIELDS))
# A text that must be in the line, in lower case, so that most lines need no search; the pattern; what replaces it.
_RULES: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    (("lamp_",), re.compile(r"\b(lamp_[A-Za-z0-9-]{1,64}_)[A-Za-z0-9_-]{16,}"), r"\1***"),  # the id of the key stays
    (("lampt_", "lamps_"), re.compile(r"\b(lamp[ts]_)[A-Za-z0-9_.-]+"), r"\1***"),
    (("whsec_",), re.compile(r"\b(whsec_)[A-Za-z0-9+/_=-]+"), r"\1***"),
    (("eyj",), re.compile(r"\beyJ[A-Za-z0-9_-]{16,}(?:\.[A-Za-z0-9_-]+)*"), "***"),  # JSON in base64: join tokens, JWTs
    (("://",), re.compile(r"(://)[^\s/@\"'<>\\]+@"), r"\1***@"),  # the login in a URL
    (("://",), re.compile(r"(://[^\s?\"'<>\\]*\?)[^\s\"'<>\\]+"), r"\1***"),
    (("?",), re.compile(r"(\?)[\w.~%-]+=[^\s\"'<>\\]*"), r"\1***"),  # the query of a path
    (("bearer ",), re.compile(r"\b(bearer )[A-Za-z0-9._~+/=-]+", re.IGNORECASE), r"\1***"),
    (("v1,", "v1a,"), re.compile(r"\b(v1a?,)[A-Za-z0-9+/]{20,}=*"), r"\1***"),  # a signature of Standard Webhooks
    (
        ("authorization", "cookie", "x-api-key", "webhook-signature"),  # as in a request, a dict or a list of pairs
        re.compile(
            rf"\b((?:{_HEADERS})(?:(?:\\?[\"'])?\s*[:=]|\\?[\"'],)\s*(?:b?\\?[\"'])?)[^\"'\n\\]+", re.IGNORECASE
        ),
        r"\1***",
    ),
)
_NAMED_VALUE = re.compile(
    rf"((?:\b|_)(?:{_PARAMETERS})(?:=|\\?[\"']\s*:\s*)(?:\\?[\"'])?)"
    r"(?:(?<=[\"'])[^\"'\\]+|[^\s\"'&,;)}\\]+)",
    re.IGNORECASE,
)
_ENDS_OF_NAME = ("=", '"', "'", "\\")  # one of them follows a name in `_NAMED_VALUE`

_log = structlog.get_logger()


class Redactor:
    """Replaces secrets in a text: by their form, and those of `known` wherever they are."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        long = {text for text in known if len(text) >= _SHORTEST_SECRET_LENGTH}
        forms = sorted(long | {json.dumps(text)[1:-1] for text in long}, key=len, reverse=True)  # in a line of JSON
        self._known = tuple(forms)

    def redact(self, text: str) -> str:
        """Return `text` with `***` in place of each secret."""
        for secret in self._known:
            if secret in text:
                text = text.replace(secret, SECRET_MASK)
        lower = text.lower()
        for needed, pattern, replacement in _RULES:
            for part in needed:  # a generator expression takes longer than the whole search
                if part in lower:
                    text = pattern.sub(replacement, text)
                    break
        return _NAMED_VALUE.sub(r"\1***", text) if _has_named_value(lower) else text


def _has_named_value(lower: str) -> bool:
    for name in SECRET_FIELDS:
        if name in lower:  # most lines have a `key_id`, which no value follows
            for end in _ENDS_OF_NAME:
                if f"{name}{end}" in lower:
                    return True
    return False


def mask_fields(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a log line, with `***` as the value of each that is named like a secret."""
    return {name: SECRET_MASK if name in SECRET_FIELDS else value for name, value in event.items()}


def secrets_in(settings: Struct) -> Iterator[str]:
    """Return the values of all settings that are marked as a secret, and the secret paths of the broker's monitors."""
    if isinstance(settings, BrokerSettings):
        yield from (urlsplit(url).path for url in settings.monitor.split(","))
    for field in structs.fields(settings):
        value = getattr(settings, field.name)
        if metadata_extra(field.type).get("secret"):
            yield from _texts_in(value)
        else:
            yield from _secrets_below(value)


def _secrets_below(value: Any) -> Iterator[str]:
    if isinstance(value, Struct):
        yield from secrets_in(value)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _secrets_below(one)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for one in value.values():
            yield from _texts_in(one)
    elif isinstance(value, str):
        yield value


JOURNAL_VARIABLE = "JOURNAL_STREAM"  # systemd sets it to the device and inode of the journal's socket
JOURNAL_SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "lamplighter"
FIELD_PREFIX = "LAMPLIGHTER_"
# The fields of a log line that become fields of the entry. journald indexes each value of each field, so they are few.
INDEXED_FIELDS = ("event", "owner", "job_id", "trace_id", "host", "error")
_SEND_TIMEOUT_S = 1.0
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_TOO_LARGE = frozenset({errno.EMSGSIZE, errno.ENOBUFS})


def is_journal(fd: int) -> bool:
    """Return whether the journal of systemd reads what is written to `fd`."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get(JOURNAL_VARIABLE) == f"{found.st_dev}:{found.st_ino}"


def is_stderr_journal() -> bool:
    """Return whether the journal of systemd reads what this process writes to stderr."""
    try:
        return is_journal(sys.stderr.fileno())
    except (OSError, ValueError):  # a stderr without a file, as in tests
        return False


def indexed_fields(event: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields of the entry for the fields of a log line."""
    return {FIELD_PREFIX + name.upper(): str(event[name]) for name in INDEXED_FIELDS if event.get(name) is not None}


def encode_entry(fields: Mapping[str, str]) -> bytes:
    """Return the entry on the wire. A value with a line feed is sent with its length."""
    return b"".join(_encode_field(name.encode(), value.encode(errors="replace")) for name, value in fields.items())


def _encode_field(name: bytes, value: bytes) -> bytes:
    if b"\n" in value:
        return b"%s\n%s%s\n" % (name, struct.pack("<Q", len(value)), value)
    return b"%s=%s\n" % (name, value)


def send_entry(path: str, message: str, priority: int, fields: Mapping[str, str]) -> None:
    """Send one entry to the socket of journald at `path`. Raises OSError if it is not taken."""
    standard = {"MESSAGE": message, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": IDENTIFIER}
    entry = encode_entry(standard | dict(fields))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(_SEND_TIMEOUT_S)
        try:
            sender.sendto(entry, path)
        except OSError as error:
            if error.errno not in _TOO_LARGE:
                raise
            _send_as_file(sender, entry, path)


def _send_as_file(sender: socket.socket, entry: bytes, path: str) -> None:
    """Send the entry in a file in memory; journald refuses one that its sender could still change."""
    fd = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(fd, "wb") as file:
        file.write(entry)
        file.flush()
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
        sender.sendmsg([], [rights], 0, path)


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


LOG_FILE_LIMIT_BYTES = 16 * 1000**2
LOG_COPIES_KEPT = 4  # beside the file that is written to
ROTATION_CHECK_INTERVAL_S = 10.0


def rotate(file: Path, limit_bytes: int = LOG_FILE_LIMIT_BYTES, copies: int = LOG_COPIES_KEPT) -> bool:
    """Move the content of `file` to `<file>.1` if it has `limit_bytes`; older copies move up. Return whether it did.

    The file is copied and then truncated, because its writers keep it open: renamed, it would grow under the new name.
    They append (O_APPEND), so they continue at its start. A line that is written between the two steps is lost.
    Raises OSError; the file is then as it was.
    """
    if not file.exists() or file.stat().st_size < limit_bytes:
        return False
    new = _numbered(file, 0)
    try:
        with file.open("rb") as source, new.open("wb") as target:
            os.fchmod(target.fileno(), os.fstat(source.fileno()).st_mode & 0o777)
            shutil.copyfileobj(source, target)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    for number in range(copies, 0, -1):
        if (older := _numbered(file, number - 1)).exists():
            older.replace(_numbered(file, number))
    os.truncate(file, 0)
    return True


def _numbered(file: Path, number: int) -> Path:
    return file.with_name(f"{file.name}.{number}")


async def rotate_forever(files: Iterable[Path]) -> None:
    """Rotate the files when they reach their limit. On a full disk they stay as they are, until there is room."""
    files = tuple(files)
    while True:
        await anyio.to_thread.run_sync(_rotate_all, files)
        await anyio.sleep(ROTATION_CHECK_INTERVAL_S)


def _rotate_all(files: Iterable[Path]) -> None:
    for file in files:
        try:
            rotate(file)
        except OSError as error:
            _log.warning("log_rotation_failed", file=str(file), error=str(error))
