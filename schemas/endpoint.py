"""A kind of job, as an image folder's `endpoint.toml` defines it (DESIGN 4).

The file is read strictly, for a slip of the pen; what a host of a newer release offers is not: what this release does
not know of it is passed over.
"""

import datetime
import math
import tomllib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field

from schemas.ids import Token
from schemas.job import NESTING_LIMIT, is_too_deep

Positive = Annotated[float, Meta(gt=0)]


class Resources(Struct, frozen=True):
    """What one container needs. MB are MiB. `gpu_optional`: it runs on the CPU where the host has no card."""

    vram_mb: Annotated[int, Meta(ge=0)] = 0
    gpus: Annotated[int, Meta(ge=0, le=16)] = 0
    gpu_optional: bool = False
    shm_mb: Annotated[int, Meta(ge=1)] = 64
    memory_mb: Annotated[int, Meta(ge=16)] = 1024
    cpus: Positive = 1.0
    disk_mb: Annotated[int, Meta(ge=0)] = 256


class Timeouts(Struct, frozen=True):
    """Seconds. A job may run `base_s + per_input_s` x its seconds of input, and stand still for `stall_s`."""

    base_s: Positive = 600.0
    per_input_s: Annotated[float, Meta(ge=0)] = 0.0
    stall_s: Positive = 180.0
    grace_s: Positive = 10.0


class EndpointRetry(Struct, frozen=True):
    """How many attempts a round has when the job does not say."""

    max_attempts: Annotated[int, Meta(ge=1, le=20)] = 3


class ProcessCommand(Struct, frozen=True):
    """How the process engine starts the image folder: argv, run inside that folder."""

    command: tuple[str, ...]


class Endpoint(Struct, frozen=True, kw_only=True):
    """One kind of job. `input` is a JSON Schema; `"format": "asset"` marks a field that names a file.

    `input_seconds` names the number field that tells the seconds of input, where there is one.
    """

    name: Token
    image: str
    pool: Token | None = None
    description: str = ""
    input: dict[str, Any] = field(default_factory=lambda: {"type": "object"})
    input_seconds: str | None = None
    resources: Resources = Resources()
    timeouts: Timeouts = Timeouts()
    retry: EndpointRetry = EndpointRetry()
    warm: bool = False
    process: ProcessCommand | None = None

    @property
    def effective_pool(self) -> str:
        """The pool its jobs wait in: its own name unless it shares one."""
        return self.pool or self.name


class EndpointInvalid(ValueError):
    """The text is no endpoint.toml; the message names the field."""


def parse_endpoint(text: str) -> Endpoint:
    """Read an `endpoint.toml`; raises EndpointInvalid."""
    try:
        said = tomllib.loads(text)
        endpoint = msgspec.convert(said, Endpoint)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:  # also a number of 5,000 digits
        raise EndpointInvalid(str(error)) from error
    for place, name in _unknown_fields(said, endpoint, "$"):
        raise EndpointInvalid(f"Object contains unknown field `{name}` - at `{place}`")
    if is_too_deep(endpoint.input):
        raise EndpointInvalid(f"Nested deeper than {NESTING_LIMIT} levels: flatten it - at `$.input`")
    for place, why in _non_json_values(endpoint.input, "$.input"):
        raise EndpointInvalid(f"{why}, which JSON Schema cannot hold: write it as text or leave it out - at `{place}`")
    return endpoint


def _unknown_fields(said: Mapping[str, Any], read: Struct, place: str) -> Iterator[tuple[str, str]]:
    """What was said and not read: where, and the name."""
    for name, value in said.items():
        if name not in read.__struct_fields__:
            yield place, name
        elif isinstance(inner := getattr(read, name), Struct):
            yield from _unknown_fields(value, inner, f"{place}.{name}")


def _non_json_values(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield each value of TOML that JSON does not have: where it is, and what it is."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _non_json_values(inner, f"{place}.{name}")
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _non_json_values(inner, f"{place}[{position}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield place, f"{value} is not a number"
    elif isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        yield place, f"{value} is a date or a time"
