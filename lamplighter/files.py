"""TODO: lamplighter.files."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def is_local_file(text: str) -> bool:
    """Whether a file of that name is there; any text may be asked about, also one that no file can be called."""
    return os.path.isfile(text)  # noqa: PTH113 - Path.is_file raises for a text of over 255 bytes


def find_local_files(given: Mapping[str, Any]) -> dict[str, Path]:
    """The inputs that may name a local file: a Path does, a text may when a file of that name is there."""
    found = {}
    for name, value in given.items():
        if isinstance(value, Path):
            found[name] = value
        elif isinstance(value, str) and is_local_file(value):
            found[name] = Path(value)
    return found


def has_text_path(given: Mapping[str, Any], files: Mapping[str, Path]) -> bool:
    """Whether one of `files` is only a text: then the endpoint's schema must say that it is meant as a file."""
    return any(isinstance(given[name], str) for name in files)


def select_asset_inputs(
    given: Mapping[str, Any], files: Mapping[str, Path], schema: Mapping[str, Any]
) -> dict[str, Path]:
    """Those of `files` that are: a text in a field that takes no file is a text, whatever lies in this folder.

    Otherwise a program that passes on what a stranger typed would upload the stranger's choice of its own files.
    """
    fields = schema.get("properties", {})
    return {
        name: path
        for name, path in files.items()
        if isinstance(given[name], Path) or fields.get(name, {}).get("format") == "asset"
    }
