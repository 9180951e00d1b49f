"""Parts of `endpoint.toml` with rules of their own: image, requirements, isolation, folders, variables and secrets.

- The name of an image follows the OCI distribution spec: registry, repository, tag and digest.
- Requirements are what a job needs of a host and does not use up: GPU models, a compute capability, labels.
- Isolation is the runtime of the container and its network. `runc` shares the kernel of the host. `runsc` (gVisor)
  answers system calls itself, in user space. `kata` runs each container in a virtual machine of its own.
- A volume (`[[volumes]]`) is read-only and has the same files for everybody. A cache (`[[caches]]`) is writable and
  belongs to one owner.
- `[env]` holds plain values. `secrets` names values that an operator or an owner has stored at the edge. The program
  finds each in a file of that name in the folder that LAMPLIGHTER_SECRETS names.
"""

import hashlib
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Annotated, Literal

from msgspec import Meta, Struct

from schemas.asset import Digest
from schemas.host_config import EnvName, HttpUrl
from schemas.job import Moment

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = rf"{_COMPONENT}(?:/{_COMPONENT})*"
_REFERENCE = re.compile(
    r"(?:(?P<registry>[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?)/)?"
    rf"(?P<repository>{_REPOSITORY})"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)

_REMEDY = (
    "is not the name of an image: write name, name:tag, registry/name:tag or name@sha256:<64 hex digits>, "
    "the name in lower case"
)


class ImageReferenceInvalid(ValueError):
    """The text names no image; the message says what is allowed."""


class ImageReference(Struct, frozen=True):
    """One image. `tag` and `digest`: at least one is set; with a digest the tag does not matter."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """The repository with its registry, as engines take it."""
        return f"{self.registry}/{self.repository}"

    @property
    def version(self) -> str:
        """The digest of a pinned image, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    @property
    def text(self) -> str:
        """The reference in full, as Docker writes it."""
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.version}"


def parse_image_reference(text: str) -> ImageReference:
    """Parse `name`, `name:tag`, `registry/name:tag` or `name@sha256:…`. Raises ImageReferenceInvalid.

    The first part is a registry if it contains a dot or a port, or is `localhost`. Without one it is Docker Hub.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise ImageReferenceInvalid(f"{text!r} {_REMEDY}")
    registry, repository, tag, digest = match.group("registry", "repository", "tag", "digest")
    if registry and registry != "localhost" and not {".", ":"} & set(registry):
        registry, repository = None, f"{registry}/{repository}"
        if not re.fullmatch(_REPOSITORY, repository, re.ASCII):
            raise ImageReferenceInvalid(f"{text!r} {_REMEDY}")
    if registry in {None, DEFAULT_REGISTRY}:
        registry = DEFAULT_REGISTRY
        repository = repository if "/" in repository else f"library/{repository}"
    return ImageReference(str(registry), repository, tag or (None if digest else DEFAULT_TAG), digest)


def mirrored(reference: ImageReference, mirror: str) -> ImageReference:
    """Return the same image at `mirror`: the address of a registry, with or without a path."""
    registry, _, path = mirror.partition("/")
    repository = f"{path}/{reference.repository}" if path else reference.repository
    return ImageReference(registry, repository, reference.tag, reference.digest)


GpuModel = Annotated[
    str, Meta(pattern=r"[A-Za-z0-9]", max_length=100, description='the name of a GPU model, as in "RTX 4090"')
]
ComputeCapability = Annotated[
    str, Meta(pattern=r"^[0-9]{1,2}\.[0-9]{1,2}\Z", description='text with two numbers, as in "8.0"')
]
LabelName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}\Z",
        description="a name of up to 63 letters, digits, dots, dashes, slashes and underscores",
    ),
]
LabelValue = Annotated[str, Meta(min_length=1, max_length=100, description="text of 1 to 100 characters")]

_WORD = re.compile(r"[a-z0-9]+")


class GpuRequirement(Struct, frozen=True):
    """The GPUs that an endpoint runs on.

    `models`: a GPU has one of them if the words of the model follow each other in the GPU's name. Case does not
    matter, and everything but letters and digits separates words. No models: any GPU. `compute_capability`: the
    lowest one; None: any.
    """

    models: tuple[str, ...] = ()
    compute_capability: str | None = None

    @property
    def is_any(self) -> bool:
        """Whether there is no requirement, so that every GPU will do."""
        return not self.models and self.compute_capability is None

    def may_be(self, name: str) -> bool:
        """Return whether a GPU of this name has one of the models. An unknown name (empty) may."""
        return not name or not self.models or any(has_words(name, model) for model in self.models)

    def is_met_by(self, name: str, compute_capability: str | None) -> bool:
        """Return whether a GPU meets the requirement. An unknown compute capability (None) meets no lowest one."""
        if not name or not self.may_be(name):
            return self.is_any
        lowest = self.compute_capability
        return lowest is None or (
            compute_capability is not None and _parse_version(compute_capability) >= _parse_version(lowest)
        )

    def describe(self) -> str:
        """Return the requirement in words, as in `RTX 4090 or A100, compute capability 8.0 or higher`."""
        capability = self.compute_capability
        parts = [" or ".join(self.models), f"compute capability {capability} or higher" if capability else ""]
        return ", ".join(filter(None, parts))


def has_words(name: str, words: str) -> bool:
    """Return whether the words of `words` follow each other in `name`: `RTX 4090` in `NVIDIA GeForce RTX 4090`."""
    found, wanted = _WORD.findall(name.lower()), _WORD.findall(words.lower())
    return any(found[at : at + len(wanted)] == wanted for at in range(len(found) - len(wanted) + 1))


def _parse_version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def describe_unmet_labels(required: Mapping[str, str], offered: Mapping[str, str]) -> str | None:
    """Return which labels a host lacks, or None if it has all of them."""
    lacking: Iterable[str] = (
        f"label {name} = {value} ({f'it has {offered[name]}' if name in offered else 'it has no such label'})"
        for name, value in sorted(required.items())
        if offered.get(name) != value
    )
    return ", ".join(lacking) or None


RuntimeName = Literal["runc", "runsc", "kata"]
NetworkName = Literal["none", "egress"]
AllowedName = Annotated[
    str,
    Meta(
        pattern=r"^(\*\.)?([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?\.)*[A-Za-z][A-Za-z0-9-]*\Z",
        max_length=253,
        description='a host name, or all names below one, as in "*.example.com"',
    ),
]

# The names under which engines have them, the usual one first.
ENGINE_RUNTIME_NAMES: dict[RuntimeName, tuple[str, ...]] = {
    "runc": ("runc", "io.containerd.runc.v2"),
    "runsc": ("runsc", "io.containerd.runsc.v1"),
    "kata": ("kata", "kata-runtime", "io.containerd.kata.v2"),
}
PROCESS_ISOLATION = "process"  # of a job that runs without a container
SANDBOX_ISOLATION = "bubblewrap"  # of such a job in a sandbox


class EngineRuntime(Struct, frozen=True):
    """A runtime of an engine. `engine_name`: its name there. `has_gpu_support`: it can give containers GPUs."""

    name: RuntimeName
    engine_name: str
    has_gpu_support: bool = True


class EgressPolicy(Struct, frozen=True):
    """The way out of a container. `allow`: the names that it may reach; none: every public host."""

    allow: tuple[str, ...] = ()


VOLUMES_OWNER = "lamplighter-volumes"  # every host may read the assets of this owner, and they are kept
RESERVED_PATHS = ("/job", "/tmp", "/run", "/proc", "/sys", "/dev")  # noqa: S108 - in the container, with all below them

MountName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z][a-z0-9_]{0,31}(?![\s\S])",
        description="up to 32 lower-case letters, digits and _, the first one a letter",
    ),
]
MountPath = Annotated[
    str,
    Meta(
        pattern=r"^(?!.*//)(?!.*/\.{1,2}(/|$))(/[^/\x00-\x1f\\:,]{1,100}){1,8}(?![\s\S])",
        description="the full path of a folder in the container, as in /weights",
    ),
]
FilePath = Annotated[
    str,
    Meta(
        pattern=r"^(?!/)(?!.*//)(?!(.*/)?\.{1,2}(/|$))[^/\x00-\x1f\\]{1,100}(/[^/\x00-\x1f\\]{1,100}){0,8}(?![\s\S])",
        description="the path of a file in the volume, as in model/unet.pth",
    ),
]
Names = Annotated[tuple[EnvName, ...], Meta(description='a list of names of variables, as in ["HF_HOME"]')]


class VolumeFile(Struct, frozen=True, kw_only=True):
    """One file of a volume. Without `url` it is the asset with this digest of the owner VOLUMES_OWNER."""

    path: FilePath
    sha256: Digest
    url: HttpUrl | None = None
    bytes: Annotated[int, Meta(ge=0)] | None = None


class Volume(Struct, frozen=True, kw_only=True):
    """A read-only folder, mounted at `path`. `env`: more variables that hold its path, besides `folder_variable`."""

    name: MountName
    path: MountPath
    files: Annotated[tuple[VolumeFile, ...], Meta(min_length=1, max_length=1000)]
    env: Names = ()

    @property
    def digest(self) -> Digest:
        """The identity of the content: the sha256 of the list that `sha256sum` would print, sorted."""
        lines = sorted(f"{file.sha256}  {file.path}\n" for file in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


class Cache(Struct, frozen=True, kw_only=True):
    """A writable folder of one owner, mounted at `path`. More than `max_mb` MiB are not kept after a job."""

    name: MountName
    path: MountPath
    max_mb: Annotated[int, Meta(ge=1, le=1_000_000)]
    env: Names = ()


def folder_variable(mount: Volume | Cache) -> str:
    """Return the name of the variable that holds the folder's path for the job."""
    kind = "VOLUME" if isinstance(mount, Volume) else "CACHE"
    return f"LAMPLIGHTER_{kind}_{mount.name.upper()}"


def find_mount_problems(volumes: Sequence[Volume], caches: Sequence[Cache], env: Container[str] = ()) -> Iterator[str]:
    """Yield what is wrong with valid tables together: names that occur twice, folders inside each other.

    `env`: the variables of the endpoint's `[env]`.
    """
    mounts: list[tuple[str, Volume | Cache]] = [
        *((f"volumes[{number}]", volume) for number, volume in enumerate(volumes)),
        *((f"caches[{number}]", cache) for number, cache in enumerate(caches)),
    ]
    for place, mount in mounts:
        if reserved := next((path for path in RESERVED_PATHS if _is_inside(mount.path, path)), None):
            yield f"{place}.path {mount.path} is in {reserved}, which containers need: choose another folder"
        yield from _find_variable_problems(place, mount, env)
    for (place, mount), (other_place, other) in combinations(mounts, 2):
        for name in sorted({*mount.env} & {*other.env}):
            yield f"{other_place}.env and {place}.env both name {name}: remove one"
        if folder_variable(mount) == folder_variable(other):
            yield f"{other_place}.name {other.name} is also the name of {place}: rename one"
        if _is_inside(mount.path, other.path) or _is_inside(other.path, mount.path):
            yield f"{other_place}.path {other.path} and {place}.path {mount.path} overlap: use separate folders"
    for number, volume in enumerate(volumes):
        yield from _find_file_problems(f"volumes[{number}]", volume)


def _find_variable_problems(place: str, mount: Volume | Cache, env: Container[str]) -> Iterator[str]:
    for name in mount.env:
        if name in env:
            yield f"{place}.env names {name}, which is set in [env] too: remove one"
        if name.startswith(OWN_PREFIX):
            yield f"{place}.env names {name}, and {OWN_PREFIX}… is set for each job: choose another name"


def _find_file_problems(place: str, volume: Volume) -> Iterator[str]:
    seen: set[str] = set()
    folders = {file.path[:end] for file in volume.files for end, char in enumerate(file.path) if char == "/"}
    for number, file in enumerate(volume.files):
        if file.path in seen:
            yield f"{place}.files[{number}].path {file.path} is in the volume twice: remove one"
        if file.path in folders:
            yield f"{place}.files[{number}].path {file.path} is also a folder of the volume: rename one"
        seen.add(file.path)


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


VARIABLE_VALUE_LIMIT_CHARS = 32_768
OWN_PREFIX = "LAMPLIGHTER_"  # of the variables of the container contract
GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")  # the host chooses a job's GPUs by these

VariableName = Annotated[
    str,
    Meta(
        pattern=rf"^(?!{OWN_PREFIX}|(?:{'|'.join(GPU_VARIABLES)})(?![\s\S]))[A-Za-z_][A-Za-z0-9_]{{0,99}}(?![\s\S])",
        description=(
            f"1 to 100 characters of A-Z a-z 0-9 _, the first one no digit; not {OWN_PREFIX}…, and not "
            f"{' or '.join(GPU_VARIABLES)}, which are set for each job"
        ),
    ),
]
VariableValue = Annotated[
    str,
    Meta(
        pattern=r"^[^\x00]*(?![\s\S])",
        max_length=VARIABLE_VALUE_LIMIT_CHARS,
        description=f"text of at most {VARIABLE_VALUE_LIMIT_CHARS} characters, without NUL",
    ),
]

ENDPOINT_SECRETS_LIMIT = 20
OWNER_SECRETS_LIMIT = 100  # of one owner, and of the installation
SECRET_LEAST_BYTES = 8  # a shorter text may stand in any line of a log, so it could not be removed from there
SECRET_LIMIT_BYTES = 32_768
SECRET_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,63}(?![\s\S])"  # noqa: S105 - a name; it is a token and a file name
SecretName = Annotated[
    str,
    Meta(
        pattern=SECRET_NAME_PATTERN, description="1 to 64 characters of A-Z a-z 0-9 _, of which the first is no digit"
    ),
]


class StoredSecret(Struct, frozen=True, kw_only=True):
    """A row of SECRETS. Its key says whose secret it is: `installation.<name>` or `owner.<owner>.<name>`.

    `sealed`: the value, encrypted by AES-256-GCM with the row's key as associated data, so that a row which was copied
    to another name cannot be opened. `key_id`: of the key in the edge's key file. `set_by`: the id of an API key.
    """

    key_id: str
    nonce: bytes
    sealed: bytes
    set_at: Moment
    set_by: str


class JobSecrets(Struct, frozen=True):
    """The answer to a host that asks for the secrets of a job that it runs: the values by name."""

    secrets: dict[str, str]


def is_secret_name(text: str) -> bool:
    """Return whether `text` may be the name of a secret."""
    return re.match(SECRET_NAME_PATTERN, text) is not None


def is_secret_value(text: str) -> bool:
    """Return whether `text` may be the value of a secret."""
    return SECRET_LEAST_BYTES <= len(text.encode()) <= SECRET_LIMIT_BYTES and "\0" not in text
