"""The rules for imports, as tables, and the walker that finds what breaks them."""

import ast
import sys
from collections.abc import Iterator
from pathlib import PurePosixPath

from deploy.wheels import SERVER_COMMAND_MODULES

SERVER_FILES = tuple(f"lamplighter/cli/{name}.py" for name in SERVER_COMMAND_MODULES)  # not of the client's wheel
STDLIB = frozenset(sys.stdlib_module_names)

# Folder or file -> our packages that it may import besides its own. The longest match counts.
LAYERS: dict[str, frozenset[str]] = {
    "schemas/": frozenset(),
    "bus/": frozenset({"schemas"}),
    "edge/": frozenset({"schemas", "bus"}),
    "runner/": frozenset({"schemas", "bus"}),
    "lamplighter/": frozenset({"schemas"}),
    **dict.fromkeys(SERVER_FILES, frozenset({"schemas", "bus", "edge", "runner"})),  # they start processes
    "images/": frozenset({"jobkit"}),
    "images/jobkit/": frozenset({"jobkit"}),  # itself, by the name it has in a container
}
OURS = frozenset({"schemas", "bus", "edge", "runner", "lamplighter", "images", "jobkit", "tests", "bench", "deploy"})

# The layers of edge and runner, lowest first. A package may import itself and every package of a lower layer. It may
# import none of its own layer and none of a higher one. `edge.settings` puts together the settings that every package
# declares for itself, so it lies above them all; a package receives its own section as an argument.
EDGE_LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"edge.store", "edge.outbound", "edge.console", "edge.reference"}),
    frozenset({"edge.core"}),
    frozenset({"edge.index"}),
    frozenset({"edge.owners"}),
    frozenset({"edge.hosts"}),
    frozenset({"edge.assets"}),
    frozenset({"edge.jobs"}),
    frozenset({"edge.usage", "edge.webhooks", "edge.power", "edge.deletion"}),
    frozenset({"edge.notify", "edge.record_metrics"}),
    frozenset({"edge.http"}),
    frozenset({"edge.server", "edge.facades.gateway", "edge.facades.heygem", "edge.facades.runpod"}),
    frozenset({"edge.settings"}),
    frozenset({"edge.domain"}),
    frozenset({"edge.container", "edge.app"}),
    frozenset({"edge.process"}),
)
RUNNER_LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"runner.egress", "runner.host_facts", "runner.metrics", "runner.slots"}),
    frozenset({"runner.engines"}),
    frozenset({"runner.assets", "runner.endpoints", "runner.gpu"}),
    frozenset({"runner.settings"}),
    frozenset({"runner.context"}),
    frozenset({"runner.execution"}),
    frozenset({"runner.claiming"}),
    frozenset({"runner.trial"}),
    frozenset({"runner.host"}),
    frozenset({"runner.lifecycle"}),
    frozenset({"runner.app"}),
)
_RANKS = {
    package: rank for layers in (EDGE_LAYERS, RUNNER_LAYERS) for rank, layer in enumerate(layers) for package in layer
}

# Library -> the only place that may import it, "" for none.
OWNERS = {
    "nats": "bus/nats/",
    "docker": "runner/engines/docker.py",
    "pynvml": "runner/gpu/nvml.py",
    "obstore": "edge/store/remote.py",
    "apprise": "edge/notify/apprise_sender.py",
    "torch": "images/preview/",
    "litestar": "edge/",
    "opentelemetry": "bus/otlp.py",
    "libcloud": "edge/power/drivers/libcloud.py",
    "httpx": "",  # Litestar's; ours is httpx2, and neither catches the other's errors
}

# Folder -> all it may import from outside this project besides the standard library.
CLOSED = {
    "schemas/": frozenset({"msgspec"}),
    "images/jobkit/": frozenset[str](),
    "lamplighter/": frozenset({"httpx2", "anyio", "msgspec", "click", "rich"}),  # the client's distribution
}


def broken_laws(path: str, source: str) -> list[str]:
    """Return every rule that the file at `path` (from the root, with /) breaks, as `path:line: what`."""
    tree = ast.parse(source, path)
    broken = [f"{path}:{line}: {why}" for line, name in _imports(tree, path) if (why := _judge(path, name))]
    names = ((node.lineno, node.id) for node in ast.walk(tree) if isinstance(node, ast.Name))
    broken += [f"{path}:{line}: a type is imported for real or not at all" for line, n in names if n == "TYPE_CHECKING"]
    return broken


def _layered_package(module: str) -> str:
    """Return the package of EDGE_LAYERS or RUNNER_LAYERS that `module` belongs to."""
    names = module.split(".")
    return ".".join(names[: 3 if names[1:2] == ["facades"] else 2])


def _judge_layers(path: str, module: str) -> str | None:
    own, other = _layered_package(path.removesuffix(".py").replace("/", ".")), _layered_package(module)
    if other == own:
        return None
    for package in (own, other):
        if package not in _RANKS:
            return f"{package} has no place in EDGE_LAYERS or RUNNER_LAYERS"
    return None if _RANKS[other] < _RANKS[own] else f"{own} may not import {other}: its layer is not lower"


def _judge(path: str, module: str) -> str | None:
    package = module.partition(".")[0]
    if package in OURS:
        layer = max((layer for layer in LAYERS if path.startswith(layer)), key=len)
        depth = 2 if path.startswith("images/") else 1  # one image may not import another
        own = ".".join(path.split("/")[:depth])
        allowed = package in LAYERS[layer] or f"{module}.".startswith(f"{own}.")
        if not allowed:
            return f"{layer} may not import {module}"
        return _judge_layers(path, module) if package in {"edge", "runner"} and path.startswith(f"{package}/") else None
    owner = OWNERS.get(package)
    if owner is not None and not (owner and path.startswith(owner)):
        return f"only {owner or 'another library'} may import {package}"
    for folder, libraries in CLOSED.items():
        is_inside = path.startswith(folder) and not path.endswith(SERVER_FILES)
        if is_inside and package not in STDLIB | libraries:
            return f"{folder} may import the standard library and {sorted(libraries)}, not {package}"
    return None


def _imports(tree: ast.AST, path: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module="edge" | "edge.facades" | "runner" as module, level=0, names=names):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.ImportFrom(module=module, level=0) if module:
                yield node.lineno, module
            case ast.ImportFrom(module=module, level=level, names=names):
                base = PurePosixPath(path).parts[:-level]
                yield node.lineno, ".".join([*base, module or names[0].name])
            case ast.Call(
                func=ast.Name(id="__import__") | ast.Attribute(attr="import_module") | ast.Name(id="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name
