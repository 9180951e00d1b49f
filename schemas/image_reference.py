"""The name of an image: registry, repository, tag and digest, by the rules of the OCI distribution spec. Pure."""

import re

from msgspec import Struct

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
