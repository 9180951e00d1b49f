"""Which inputs of a job are local files that must be uploaded first."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def is_local_file(text: str) -> bool:
    """Return whether `text` is the path of an existing file. Accepts texts that cannot be a path."""
    return os.path.isfile(text)  # noqa: PTH113 - Path.is_file raises for a text of over 255 bytes


def find_local_files(inputs: Mapping[str, Any]) -> dict[str, Path]:
    """Return the inputs that may name a local file: every Path, and each text that is the path of a file."""
    found = {}
    for name, value in inputs.items():
        if isinstance(value, Path):
            found[name] = value
        elif isinstance(value, str) and is_local_file(value):
            found[name] = Path(value)
    return found


def has_text_path(inputs: Mapping[str, Any], files: Mapping[str, Path]) -> bool:
    """Return whether one of `files` was given as text: then the endpoint's schema decides whether it is a file."""
    return any(isinstance(inputs[name], str) for name in files)


def select_asset_inputs(
    inputs: Mapping[str, Any], files: Mapping[str, Path], schema: Mapping[str, Any]
) -> dict[str, Path]:
    """Return those of `files` that are Paths or are in a field whose schema takes a file.

    A text in any other field stays a text. Otherwise a program that forwards user input would upload any of its
    own files that the user names.
    """
    fields = schema.get("properties", {})
    return {
        name: path
        for name, path in files.items()
        if isinstance(inputs[name], Path) or fields.get(name, {}).get("format") == "asset"
    }
