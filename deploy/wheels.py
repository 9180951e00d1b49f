"""Build the two distributions: `python -m deploy.wheels [FOLDER]`, into dist/ by default.

`lamplighter` is the client, `lamplighter-server` is everything else. Top-level packages named `schemas`, `bus`, `edge`,
`runner` and `images` could collide with those of other distributions. In the wheels they are therefore inside
`lamplighter` and `lamplighter_server`, and `deploy.relocation` rewrites the imports. The requirements of both are in
pyproject.toml.

The build fails if a module of the client imports the server, or a package that the client does not require.
"""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.relocation import ModuleMap, RelocationError, module_strings, rewrite_imports

ROOT = Path(__file__).resolve().parents[1]
CLIENT, SERVER = "lamplighter", "lamplighter-server"
# Modules of lamplighter/cli that go into the server's wheel: its commands, and what they share.
SERVER_COMMAND_MODULES = (
    *("up", "edge", "runner", "relay", "backup", "health", "install", "uninstall"),
    *(
        "server_commands",
        "machine_checks",
        "log_output",
        "process_setup",
        "supervisor",
        "up_options",
        "backup_archive",
    ),
    *("backup_target", "config", "power_driver", "try_image", "service_places", "service_units"),
)
# A path in this repository -> its path in the wheels. The first key that a path starts with is used.
PLACES: dict[str, str] = {
    **{f"lamplighter/cli/{name}.py": f"lamplighter_server/cli/{name}.py" for name in SERVER_COMMAND_MODULES},
    "lamplighter/": "lamplighter/",
    "schemas/": "lamplighter/_schemas/",
    "bus/": "lamplighter_server/bus/",
    "edge/": "lamplighter_server/edge/",
    "runner/": "lamplighter_server/runner/",
    "images/": "lamplighter_server/images/",
    "clients/js/src/": "lamplighter_server/edge/console/client/",  # the pages of the console load them
}
SOURCE_FOLDERS = ("schemas", "bus", "edge", "runner", "images", "lamplighter", "clients/js/src")
VERBATIM = "images/"  # copied unchanged: these programs run in containers and import their neighbours there
SERVER_DOOR = "lamplighter/cli/server_parts.py"  # the one client module that imports the server, where it is installed
NEW_FILES = {
    "lamplighter_server/__init__.py": '"""Edge, runner and relay of Lamplighter; `lamplighter` starts them."""\n',
    "lamplighter_server/cli/__init__.py": '"""The commands of the server."""\n',
    "lamplighter_server/py.typed": "",
}


@dataclass(frozen=True)
class Distribution:
    """The metadata of one distribution, for its pyproject.toml."""

    name: str
    summary: str
    requires: tuple[str, ...]
    extras: dict[str, tuple[str, ...]]
    classifiers: tuple[str, ...]
    scripts: dict[str, str]

    @property
    def package(self) -> str:
        """The name of its top-level package, the only one."""
        return self.name.replace("-", "_")


def distributions(project: dict[str, Any], version: str) -> tuple[Distribution, Distribution]:
    """Return client and server, from the `[project]` table of this repository's pyproject.toml."""
    extras: dict[str, list[str]] = project["optional-dependencies"]
    client = Distribution(
        CLIENT,
        "Client library and command line of Lamplighter, a self-hosted GPU job runner.",
        tuple(project["dependencies"]),
        {},
        ("Operating System :: OS Independent",),
        {"lamplighter": "lamplighter.cli:main"},
    )
    server = Distribution(
        SERVER,
        project["description"],
        (f"{CLIENT}=={version}", *extras["server"]),
        {name: tuple(extras[name]) for name in ("preview", "remote", "libcloud", "traces", "notify", "sandbox")},
        ("Operating System :: POSIX :: Linux",),
        {},
    )
    return client, server


def place_of(path: str) -> str:
    """Return the path in the wheels of a file of this repository."""
    return next(new + path.removeprefix(old) for old, new in PLACES.items() if path.startswith(old))


def module_of(path: str) -> str:
    """Return the dotted name of a Python file."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def source_files(root: Path) -> Iterator[str]:
    """Yield every file that is shipped, as a path below `root`."""
    for folder in SOURCE_FOLDERS:
        for parent, folders, names in os.walk(root / folder):
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
            for name in sorted(names):
                if not name.endswith((".pyc", ".part")):
                    yield (Path(parent) / name).relative_to(root).as_posix()


def moved_modules(root: Path) -> dict[str, str]:
    """Return old and new name of each module that the wheels rename."""
    moved = {module_of(path): module_of(place_of(path)) for path in source_files(root) if path.endswith(".py")}
    return {old: new for old, new in moved.items() if old != new}


def relocate(root: Path, target: Path) -> None:
    """Write all files of both distributions below `target`, under their new names. Raises RelocationError."""
    files = list(source_files(root))
    modules = ModuleMap(moved_modules(root))
    broken: list[str] = []
    for path in files:
        new = target / place_of(path)
        new.parent.mkdir(parents=True, exist_ok=True)
        if not path.endswith(".py") or path.startswith(VERBATIM):
            shutil.copy(root / path, new)
            continue
        source = (root / path).read_text()
        broken += module_strings(source, path, modules.new_names)
        new.write_text(rewrite_imports(source, path, modules))
    for name, text in NEW_FILES.items():
        (target / name).write_text(text)
    if broken:
        raise RelocationError("\n".join([*broken, "derive these names from __package__ or from the module itself"]))


def check_client(target: Path, requires: tuple[str, ...]) -> None:
    """Check that the client imports only itself and what it requires. Raises RelocationError."""
    allowed = {"lamplighter", *(requirement_name(text) for text in requires), "anyio"}  # anyio: httpx2 brings it
    broken = []
    for path in sorted((target / "lamplighter").rglob("*.py")):
        name = path.relative_to(target).as_posix()
        for node in ast.walk(ast.parse(path.read_text(), name)):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in imported:
                package = module.partition(".")[0]
                if package not in allowed | sys.stdlib_module_names and name != SERVER_DOOR:
                    broken.append(f"{name}:{getattr(node, 'lineno', 0)}: the client may not import {module}")
    if broken:
        raise RelocationError("\n".join([*broken, "if it is a command of the server, name it in deploy/wheels.py"]))


def requirement_name(text: str) -> str:
    """Return the name in a requirement, `httpx2` of `httpx2>=2.16`."""
    return next(text[:end] for end in range(1, len(text) + 1) if text[end : end + 1] in {"", *"[<>=!~; "})


def pyproject_text(distribution: Distribution, project: dict[str, Any], version: str) -> str:
    """Return the pyproject.toml from which hatchling builds the distribution out of its relocated sources."""

    def array(items: tuple[str, ...]) -> str:
        return "[" + ", ".join(f'"{item}"' for item in (i.replace('"', "'") for i in items)) + "]"

    lines = [
        *("[build-system]", 'requires = ["hatchling"]', 'build-backend = "hatchling.build"', ""),
        *("[project]", f'name = "{distribution.name}"', f'version = "{version}"'),
        f'description = "{distribution.summary}"',
        *('readme = "README.md"', f'license = "{project["license"]}"', 'license-files = ["LICENSE"]'),
        f'requires-python = "{project["requires-python"]}"',
        f"dependencies = {array(distribution.requires)}",
        f"classifiers = {array(distribution.classifiers)}",
        *("", "[project.optional-dependencies]"),
        *(f"{name} = {array(items)}" for name, items in distribution.extras.items()),
        *("", "[project.scripts]", *(f'{name} = "{entry}"' for name, entry in distribution.scripts.items())),
        *("", "[tool.hatch.build]", "ignore-vcs = true", f'include = ["/{distribution.package}"]'),
    ]
    return "\n".join(lines) + "\n"


def build(root: Path, out: Path) -> list[Path]:
    """Build a wheel and a source archive of both distributions into `out`; return their paths."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    version = read_version(root)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        relocate(root, tree)
        both = distributions(project, version)
        check_client(tree, both[0].requires)
        for distribution in both:
            folder, made = Path(scratch) / distribution.name, Path(scratch) / "made"
            folder.mkdir()
            shutil.move(tree / distribution.package, folder / distribution.package)
            (folder / "pyproject.toml").write_text(pyproject_text(distribution, project, version))
            for name in ("README.md", "LICENSE"):
                shutil.copy(root / name, folder / name)
            argv = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel", "-d", str(made)]
            done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RelocationError(f"hatchling cannot build {distribution.name}:\n{done.stdout}{done.stderr}")
        return [Path(shutil.move(file, out / file.name)) for file in sorted(made.iterdir())]


def read_version(root: Path) -> str:
    """Return VERSION of schemas/version.py, which is defined nowhere else."""
    for node in ast.parse((root / "schemas/version.py").read_text()).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="VERSION")], value=ast.Constant(value=str(version))):
                return version
    raise RelocationError("schemas/version.py has no VERSION")


def main() -> int:
    try:
        built = build(ROOT, Path(sys.argv[1]) if sys.argv[1:] else ROOT / "dist")
    except RelocationError as error:
        print(f"wheels: {error}", file=sys.stderr)
        return 1
    for file in built:
        print(f"wheels: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
