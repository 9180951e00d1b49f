"""Makes `import edge.process` import `lamplighter_server.edge.process` of the wheels: `deploy.wheel_code` installs it.

It is copied beside the packages of an environment, where each Python loads it at its start. So the tests, which import
by the names of this repository, and every process that they start run the code of the wheels. A process that starts in
another tree (an earlier release, a copy for mutants) runs that tree.

Few imports, none of importlib.abc and importlib.util: these take longer than the whole start of Python.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import CodeType, ModuleType
from typing import Any

PACKAGES = ("lamplighter", "lamplighter_server")


class AliasLoader:
    """Loads a module under its new name. Both names are then the same module."""

    def __init__(self, real: ModuleSpec) -> None:
        self._real = real
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module of the checkout, already executed."""
        module = importlib.import_module(self._real.name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Undo what the import system has just done: it put the spec of the alias there."""
        module.__spec__ = self._spec

    def get_code(self, _: str) -> CodeType | None:
        """Return the code for `python -m`."""
        loader: Any = self._real.loader
        code: CodeType | None = loader.get_code(self._real.name)
        return code


class WheelFinder:
    """Finds the modules of the wheels in `folder`, under their old and their new names."""

    def __init__(self, folder: str, new_names: dict[str, str]) -> None:
        self._folder = folder
        self._new_names = new_names

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to import `name`, None if it is not in the wheels."""
        if name in PACKAGES:
            return PathFinder.find_spec(name, [self._folder], target)
        new = self._new_names.get(name)
        if new is None:
            return None
        real = PathFinder.find_spec(new, importlib.import_module(new.rpartition(".")[0]).__path__)
        if real is None:
            return None
        loader: Any = AliasLoader(real)
        spec = ModuleSpec(name, loader, origin=real.origin)
        spec.submodule_search_locations = real.submodule_search_locations
        return spec


def install(root: str, folder: str, new_names: dict[str, str]) -> None:
    """Use the wheels in `folder`, unless this process starts in another tree than `root`."""
    here = os.getcwd()  # noqa: PTH109 - loaded at every start
    if here == root or not os.path.isdir(os.path.join(here, "lamplighter")):  # noqa: PTH112, PTH118
        finder: Any = WheelFinder(folder, new_names)
        sys.meta_path.insert(0, finder)
