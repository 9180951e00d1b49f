"""Rows of USAGE from bytes; both buses use it. What is no such row is left out: a report must not die of one."""

import msgspec

from schemas.usage import JobUse, PowerUse

_job = msgspec.json.Decoder(JobUse)
_power = msgspec.json.Decoder(PowerUse)


def of_job(data: bytes) -> JobUse | None:
    """The row of a job."""
    try:
        return _job.decode(data)
    except msgspec.DecodeError:
        return None


def of_power(data: bytes) -> PowerUse | None:
    """The row of a host's span."""
    try:
        return _power.decode(data)
    except msgspec.DecodeError:
        return None
