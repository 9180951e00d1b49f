"""Moves packages of this repository to other names: the imports of a file are rewritten, nothing else is.

Only import statements are touched, so a string that names a module would keep the old name. The code therefore derives
such names from `__package__` or from a module object, and `module_strings` finds those that do not.
"""

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass


class RelocationError(Exception):
    """A file cannot be moved; the message names the line and says what to change."""


@dataclass(frozen=True)
class ModuleMap:
    """The new dotted names of modules, by the old ones. The longest name that a module starts with counts."""

    new_names: Mapping[str, str]

    def new_name(self, module: str) -> str:
        """Return the new name of a module, which is the old one if it stays."""
        parts = module.split(".")
        for length in range(len(parts), 0, -1):
            new = self.new_names.get(".".join(parts[:length]))
            if new is not None:
                return ".".join([new, *parts[length:]])
        return module

    def moves(self, module: str) -> bool:
        return self.new_name(module) != module


def rewrite_imports(source: str, path: str, modules: ModuleMap) -> str:
    """Return the source with the new names in its import statements. The number of lines stays the same.

    Raises RelocationError for an import that binds a name which the move changes, as `import bus.nats` does.
    """
    lines = source.splitlines(keepends=True)
    statements = [node for node in ast.walk(ast.parse(source, path)) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in sorted(statements, key=lambda node: node.lineno, reverse=True):
        new = _new_statement(node, path, modules)
        if new is not None:
            _replace(lines, node, new)
    return "".join(lines)


def _new_statement(node: ast.Import | ast.ImportFrom, path: str, modules: ModuleMap) -> str | None:
    """Return the statement that takes the node's place, on one line, or None if nothing changes."""
    if isinstance(node, ast.Import):
        if not any(modules.moves(alias.name) for alias in node.names):
            return None
        return "import " + ", ".join(_moved_alias(alias, f"{path}:{node.lineno}", modules) for alias in node.names)
    if node.level:
        raise RelocationError(f"{path}:{node.lineno}: a relative import: write the whole name of the module")
    module = node.module or ""
    by_package: dict[str, list[str]] = {}
    for alias in node.names:
        package, _, name = modules.new_name(f"{module}.{alias.name}").rpartition(".")
        if name != alias.name:
            raise RelocationError(f"{path}:{node.lineno}: {module}.{alias.name} gets another last name, {name}")
        by_package.setdefault(package, []).append(ast.unparse(alias))
    if list(by_package) == [module]:
        return None
    return "; ".join(f"from {package} import {', '.join(names)}" for package, names in by_package.items())


def _moved_alias(alias: ast.alias, place: str, modules: ModuleMap) -> str:
    new = modules.new_name(alias.name)
    if new == alias.name:
        return ast.unparse(alias)
    if alias.asname is None and "." in alias.name:
        raise RelocationError(f"{place}: write `from … import …`: `import {alias.name}` binds a name that moves")
    return f"{new} as {alias.asname or alias.name}"


def _replace(lines: list[str], node: ast.stmt, new: str) -> None:
    """Put `new` in the node's place. Lines count bytes of UTF-8 in `col_offset`, and import statements are ASCII."""
    first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    before = lines[first].encode()[: node.col_offset].decode()
    after = lines[last].encode()[node.end_col_offset :].decode()
    lines[first : last + 1] = [before + new + after, *["\n"] * (last - first)]


def module_strings(source: str, path: str, known: Collection[str]) -> Iterator[str]:
    """Yield a line for each string constant with the dotted name of a module in `known`. Docstrings do not count."""
    tree = ast.parse(source, path)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            for word in re.findall(r"\w+(?:\.\w+)+", node.value):
                if word in known:
                    yield f"{path}:{node.lineno}: a string names the module {word}, which gets another name"
