"""What the broker can answer instead of doing as told, in our words. `bus.errors` maps everybody else's to these.

BusError
  Conflict      the record moved on: re-read
  TooLarge      never recordable
  StoreFull     refuse new work
  Denied        the broker user lacks a right: a mistake of set-up, loud
  Unreachable   the broker is away: try again
  Unreadable    a stored row is not one: set it aside
"""


class BusError(Exception):
    """Root of what the broker can answer instead of doing as told."""


class Conflict(BusError):
    """The compare-and-set failed: somebody wrote first. Re-read and decide again."""


class TooLarge(BusError):
    """The message is larger than the broker takes, now and for ever."""


class StoreFull(BusError):
    """The stream or the store has no room. What was asked did not happen."""


class Denied(BusError):
    """The broker user has no right to this subject: a mistake of set-up, never of a job."""


class Unreachable(BusError):
    """The broker does not answer. Whether the last write happened is unknown: read before writing again."""


class Unreadable(BusError):
    """The bytes stored under this key are not a row of the table. Everything else in the table can be used."""
