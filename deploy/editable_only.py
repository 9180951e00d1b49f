"""A hook of hatchling: this repository itself is only installed in place, as ./justw does.

A wheel of it would install the top-level packages `schemas`, `bus`, `edge`, `runner` and `images`.
"""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class EditableOnly(BuildHookInterface[Any]):
    """Refuses to build anything but the editable wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Raises SystemExit for a wheel that holds files."""
        if version != "editable":
            raise SystemExit("lamplighter: this builds no wheels: run `just release`, or pip install --editable")
