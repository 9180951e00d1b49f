"""Requirements of an endpoint that a job does not use up: GPU models, a compute capability, labels."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated

from msgspec import Meta, Struct

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


class CardRequirement(Struct, frozen=True):
    """The cards that an endpoint runs on.

    `models`: a card has one of them if the words of the model follow each other in the card's name. Case does not
    matter, and everything but letters and digits separates words. No models: any card. `compute_capability`: the
    lowest one; None: any.
    """

    models: tuple[str, ...] = ()
    compute_capability: str | None = None

    @property
    def is_any(self) -> bool:
        """Whether there is no requirement, so that every card will do."""
        return not self.models and self.compute_capability is None

    def may_be(self, name: str) -> bool:
        """Return whether a card of this name has one of the models. An unknown name (empty) may."""
        return not name or not self.models or any(has_words(name, model) for model in self.models)

    def is_met_by(self, name: str, compute_capability: str | None) -> bool:
        """Return whether a card meets the requirement. An unknown compute capability (None) meets no lowest one."""
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
