"""Entries of systemd's journal with fields, by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).

One datagram is one entry. An entry that is too large for a datagram is sent as a sealed file in memory.
"""

import array
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Mapping
from typing import Any

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
