"""An endpoint: a kind of job, defined by `endpoint.toml` in an image folder.

Unknown keys in the file are an error, because they may be typos. Unknown keys in a host's capabilities are ignored,
because they come from a newer release.
"""

import datetime
import math
import tomllib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct, field, structs

from schemas.endpoint_parts import (
    ENDPOINT_SECRETS_LIMIT,
    AllowedName,
    Cache,
    ComputeCapability,
    EgressPolicy,
    GpuModel,
    GpuRequirement,
    ImageReferenceInvalid,
    LabelName,
    LabelValue,
    NetworkName,
    RuntimeName,
    SecretName,
    VariableName,
    VariableValue,
    Volume,
    find_mount_problems,
    parse_image_reference,
)
from schemas.job import NESTING_LIMIT, Token, is_too_deep
from schemas.settings_schema import (
    SettingFault,
    did_you_mean,
    explain_lookalikes,
    find_faults,
    is_struct,
    join_name,
    show,
    strip_annotations,
    union_members,
)

Positive = Annotated[float, Meta(gt=0)]
NUMBER_LIMIT = 10**12  # no count, MiB or byte of an endpoint is larger; Docker counts bytes in 64 bits


class Resources(Struct, frozen=True):
    """The resources of one container. MB are MiB. `gpu_optional`: it runs on the CPU of a host without a GPU.

    `share`: the part of each of its GPUs that it takes. Unset: one divided by the host's `containers_per_gpu`.
    """

    vram_mb: Annotated[int, Meta(ge=0)] = 0
    gpus: Annotated[int, Meta(ge=0, le=16)] = 0
    share: Annotated[float, Meta(gt=0, le=1)] | None = None
    gpu_optional: bool = False
    shm_mb: Annotated[int, Meta(ge=1)] = 64
    memory_mb: Annotated[int, Meta(ge=16)] = 1024
    cpus: Positive = 1.0
    disk_mb: Annotated[int, Meta(ge=0)] = 256


class Timeouts(Struct, frozen=True):
    """Seconds. A job may run `base_s + per_input_s` x its seconds of input, and make no progress for `stall_s`."""

    base_s: Positive = 600.0
    per_input_s: Annotated[float, Meta(ge=0)] = 0.0
    stall_s: Positive = 180.0
    grace_s: Positive = 10.0


class EndpointRetry(Struct, frozen=True):
    """The number of attempts of a round when the job does not say."""

    max_attempts: Annotated[int, Meta(ge=1, le=20)] = 3


class Reuse(Struct, frozen=True):
    """Keep a loaded container for the next job: for at most so many jobs, and for so many minutes.

    With the scope `owner` a container that has run a job of one owner never runs one of another owner.
    """

    jobs: Annotated[int, Meta(ge=2, le=100_000)] = 100
    minutes: Positive = 60.0
    scope: Literal["owner", "endpoint"] = "owner"


class ProcessCommand(Struct, frozen=True):
    """The argv with which the process engine starts a job, in the image folder."""

    command: tuple[str, ...]


class Endpoint(Struct, frozen=True, kw_only=True):
    """One kind of job. `input` is a JSON Schema; `"format": "asset"` marks a field that names a file.

    `input_seconds` names the number field that has the seconds of input, where there is one. `title`, `description` and
    the `title` and `description` of a field are English; the same keys with `_zh` are their Chinese. `gpu`: the models
    of GPU that it runs on; `compute_capability`: the lowest one; `labels`: those that a host must have. `runtime`: what
    isolates its containers; None: the engine's default. `allow`: the names that they may reach with `network = egress`.
    """

    name: Token
    image: str
    pool: Token | None = None
    description: str = ""
    description_zh: str = ""
    title: str = ""
    title_zh: str = ""
    input: dict[str, Any] = field(default_factory=lambda: {"type": "object"})
    input_seconds: str | None = None
    resources: Resources = Resources()
    timeouts: Timeouts = Timeouts()
    retry: EndpointRetry = EndpointRetry()
    warm: bool = False
    reuse: Reuse | None = None
    process: ProcessCommand | None = None
    volumes: tuple[Volume, ...] = ()
    caches: tuple[Cache, ...] = ()
    gpu: tuple[GpuModel, ...] = ()
    compute_capability: ComputeCapability | None = None
    labels: dict[LabelName, LabelValue] = field(default_factory=dict)
    env: dict[VariableName, VariableValue] = field(default_factory=dict)
    secrets: Annotated[tuple[SecretName, ...], Meta(max_length=ENDPOINT_SECRETS_LIMIT)] = ()
    runtime: RuntimeName | None = None
    network: NetworkName = "none"
    allow: tuple[AllowedName, ...] = ()

    @property
    def effective_pool(self) -> str:
        """The pool in which its jobs wait: its own name, unless it shares one."""
        return self.pool or self.name

    @property
    def offered(self) -> "Endpoint":
        """The endpoint as its host offers it: without URLs of weights and variables, which may hold a token."""
        return structs.replace(self, volumes=(), caches=(), env={})

    @property
    def required_gpu(self) -> GpuRequirement:
        """The GPUs that its jobs run on."""
        return GpuRequirement(self.gpu, self.compute_capability)

    @property
    def uses_owner_secrets(self) -> bool:
        """Whether a job may get secrets of its owner: not where one container runs jobs of several owners."""
        return self.reuse is None or self.reuse.scope == "owner"

    @property
    def egress(self) -> EgressPolicy | None:
        """The way out of its containers; None: they have no network."""
        return EgressPolicy(self.allow) if self.network == "egress" else None


class EndpointInvalid(ValueError):
    """The text is not an endpoint.toml; the message names the field."""


def parse_endpoint(text: str) -> Endpoint:
    """Read an `endpoint.toml`. Raises EndpointInvalid."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of 5,000 digits
        raise EndpointInvalid(f"it is not valid TOML: {error}") from error
    problems = [f"{fault.name} {fault.problem}" for fault in _find_faults(table)]
    if problems:
        raise EndpointInvalid("; ".join(problems))
    endpoint = msgspec.convert(table, Endpoint)
    if endpoint.resources.share is not None and not endpoint.resources.gpus:
        raise EndpointInvalid("resources.share is a part of a GPU: set resources.gpus = 1, or leave share out")
    try:
        parse_image_reference(endpoint.image)
    except ImageReferenceInvalid as error:
        raise EndpointInvalid(f"image {error}") from error
    if mount_problems := [
        *find_mount_problems(endpoint.volumes, endpoint.caches, endpoint.env),
        *_find_cache_problems(endpoint),
    ]:
        raise EndpointInvalid("; ".join(mount_problems))
    if refusals := [*_find_unusable_values(table)] or [
        *_find_unusable_program(endpoint),
        *_find_repeated(endpoint),
        *_find_missing_field(endpoint),
    ]:
        raise EndpointInvalid("; ".join(refusals))
    if contradiction := _find_contradiction(endpoint):
        raise EndpointInvalid(contradiction)
    if is_too_deep(endpoint.input):
        raise EndpointInvalid(f"Nested deeper than {NESTING_LIMIT} levels: flatten it - at `$.input`")
    for place, why in _non_json_values(endpoint.input, "$.input"):
        raise EndpointInvalid(f"{why}, which JSON Schema cannot hold: write it as text or leave it out - at `{place}`")
    return endpoint


def _find_cache_problems(endpoint: Endpoint) -> Iterator[str]:
    """Yield why a container of this endpoint could have the caches of no owner, or of several."""
    if endpoint.caches and endpoint.warm:
        yield "warm = true starts containers before their owner is known, and [[caches]] belong to one: remove warm"
    if endpoint.caches and endpoint.reuse is not None and endpoint.reuse.scope != "owner":
        yield 'reuse.scope is "endpoint", and [[caches]] belong to one owner: set scope = "owner"'


def _find_contradiction(endpoint: Endpoint) -> str | None:
    """Return which keys of the file contradict each other, and what to do."""
    if not endpoint.required_gpu.is_any and not endpoint.resources.gpus:
        return "gpu and compute_capability need a GPU: set resources.gpus to 1 or more, or remove them"
    if endpoint.allow and endpoint.network != "egress":
        return 'allow needs a network: set network = "egress", or remove allow'
    if endpoint.network == "egress" and endpoint.runtime not in {None, "runc"}:
        return f'network = "egress" needs the runtime runc: remove runtime = "{endpoint.runtime}", or the network'
    return None


def _find_unusable_values(table: Mapping[str, Any]) -> Iterator[str]:
    """Yield values that have the right type, and that no host could use."""
    for place, value in _walk_values({name: value for name, value in table.items() if name != "input"}, ""):
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{place} is {value}: it must be a finite number"
        elif isinstance(value, int) and value > NUMBER_LIMIT:
            yield f"{place} is {value}: it must be at most {NUMBER_LIMIT}"
        elif isinstance(value, str) and "\0" in value:
            yield f"{place} is {show(value)}: remove the NUL character"


def _walk_values(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield each value that is neither a table nor a list, with its place in the file."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _walk_values(inner, join_name(place, name))
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _walk_values(inner, f"{place}[{position}]")
    else:
        yield place, value


def _find_unusable_program(endpoint: Endpoint) -> Iterator[str]:
    """Yield keys whose values name something that cannot exist: a program, a GPU, a server."""
    command = endpoint.process.command if endpoint.process else None
    if command is not None and not (command and command[0]):
        yield f'process.command is {show(command)}: it must begin with a program, as in ["python3", "main.py"]'
    for position, model in enumerate(endpoint.gpu):
        if not (model.isascii() and model.isprintable()):
            shown = show(model) + explain_lookalikes(model)
            yield f'gpu[{position}] is {shown}: it must be a name in ASCII, as in "RTX 4090"'
    for name, value in endpoint.labels.items():
        if not value.isprintable():
            yield f"labels.{name} is {show(value)}: it must be text without control characters"
    for number, volume in enumerate(endpoint.volumes):
        for position, file in enumerate(volume.files):
            if file.url is not None and not _names_server(file.url):
                yield (
                    f"volumes[{number}].files[{position}].url is {show(file.url)}: it must be an address with the name "
                    "of a server, as in https://example.com/unet.pth"
                )


def _find_repeated(endpoint: Endpoint) -> Iterator[str]:
    """Yield each entry of a list that says the same as an earlier one."""
    for key, entries in (("gpu", endpoint.gpu), ("secrets", endpoint.secrets), ("allow", endpoint.allow)):
        first: dict[str, int] = {}
        for position, entry in enumerate(entries):
            same = entry if key == "secrets" else entry.casefold()  # case matters in the name of a secret only
            if (earlier := first.setdefault(same, position)) != position:
                yield f"{key}[{position}] is {show(entry)}, the same as {key}[{earlier}]: remove one"


def _find_missing_field(endpoint: Endpoint) -> Iterator[str]:
    """Yield that `input_seconds` names a field that the input cannot have."""
    properties, is_closed = endpoint.input.get("properties"), endpoint.input.get("additionalProperties") is False
    if not is_closed or not isinstance(properties, dict) or endpoint.input_seconds in {None, *properties}:
        return
    fields = ", ".join(properties) or "no field"
    yield f"input_seconds is {show(endpoint.input_seconds)}: it must be a field of input, which has {fields}"


def _names_server(url: str) -> bool:
    """Return whether an HTTP client could ask a server for the URL."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and url.isprintable() and " " not in parts.netloc and parts.port != 0
    except ValueError:
        return False


def _find_faults(table: Mapping[str, Any]) -> Iterator[SettingFault]:
    """Yield every key that is wrong: unknown ones first, which may be the reason why another one is missing."""
    yield from _find_unknown(table, Endpoint, "")
    try:
        msgspec.convert(table, Endpoint)
    except (msgspec.ValidationError, RecursionError) as error:
        reason, _, place = str(error).rstrip("`").partition(" - at `$.")
        yield from list(find_faults(Endpoint, table, is_strict=True)) or [SettingFault(place, f"is refused: {reason}")]


def _find_unknown(table: Mapping[str, Any], kind: type[Struct], place: str) -> Iterator[SettingFault]:
    fields = {field.encode_name: field for field in structs.fields(kind)}
    for name, value in table.items():
        path = join_name(place, name)
        if name not in fields:
            yield SettingFault(path, _describe_unknown(name, fields))
            continue
        inner, is_list = _table_type(fields[name].type)
        if inner is not None and isinstance(value, dict) and not is_list:
            yield from _find_unknown(value, inner, path)
        if inner is not None and isinstance(value, list) and is_list:
            for position, one in enumerate(value):
                if isinstance(one, dict):
                    yield from _find_unknown(one, inner, f"{path}[{position}]")


def _describe_unknown(name: str, fields: Mapping[str, structs.FieldInfo]) -> str:
    """Say where a key belongs that the table does not have, or which keys it has."""
    for table, field_info in fields.items():
        inner, is_list = _table_type(field_info.type)
        if inner is not None and not is_list and name in inner.__struct_encode_fields__:
            return f"belongs to the table [{table}]: write it below that line"
    return f"is an unknown field{did_you_mean(name, fields)}: allowed are {', '.join(fields)}"


def _table_type(kind: Any) -> tuple[type[Struct] | None, bool]:
    """Return the Struct that a field of this type holds, and whether it holds a list of them."""
    for member in map(strip_annotations, union_members(kind)):
        if is_struct(member):
            return member, False
        if get_origin(member) is tuple and is_struct(strip_annotations(get_args(member)[0])):
            return strip_annotations(get_args(member)[0]), True
    return None, False


def _non_json_values(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield each TOML value that JSON does not have: its path and a description."""
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
