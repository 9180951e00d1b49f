"""Read the job's settings. The edge has checked them against endpoint.toml."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .encode import Coding


@dataclass(frozen=True)
class PreviewOptions:
    """`gain` scales how far the mouth opens; `max_side` bounds the result's longer side, in pixels."""

    coding: Coding
    gain: float
    max_side: int

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "PreviewOptions":
        coding = Coding(int(fields.get("fps", 25)), int(fields.get("crf", 20)), str(fields.get("preset", "superfast")))
        return cls(coding, float(fields.get("gain", 1.0)), int(fields.get("max_side", 1920)))
