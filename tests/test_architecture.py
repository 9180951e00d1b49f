"""The tree keeps its rules: layers, one library in one place, and nothing of one machine in what is committed."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deploy.wheels import SERVER_COMMAND_MODULES
from tests.architecture import EDGE_LAYERS, LAYERS, OWNERS, RUNNER_LAYERS, broken_laws

ROOT = Path(__file__).parent.parent
SHIPPED = ("schemas/", "bus/", "edge/", "runner/", "lamplighter/", "images/")

# Written with brackets, so that this file does not hold what it looks for.
REGISTRY = re.compile(
    r"py[p]i\.org|python[h]osted\.|download\.py[t]orch\.|registry\.np[m]js|(deb|security)\.deb[i]an\.org"
)
MACHINE = re.compile(r"(?<![\w.~}])/(wor[k]|roo[t])/|/op[t]/(wheels|pypi)")


def tracked() -> list[Path]:
    """What is committed or is about to be: tracked files, and new ones that git does not ignore."""
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


def test_layers_are_these():
    """Spelled out by hand again, so that a wider table is a decision and not a mistake."""
    assert {layer: sorted(allowed) for layer, allowed in LAYERS.items()} == {
        "schemas/": [],
        "bus/": ["schemas"],
        "edge/": ["bus", "schemas"],
        "runner/": ["bus", "schemas"],
        "lamplighter/": ["schemas"],
        "images/": ["jobkit"],
        "images/jobkit/": ["jobkit"],
    } | {f"lamplighter/cli/{name}.py": ["bus", "edge", "runner", "schemas"] for name in SERVER_COMMAND_MODULES}
    assert set(OWNERS) == {
        "nats",
        "docker",
        "pynvml",
        "obstore",
        "torch",
        "litestar",
        "apprise",
        "libcloud",
        "httpx",
        "opentelemetry",
    }


def test_layers_of_the_edge_are_these():
    assert [sorted(layer) for layer in EDGE_LAYERS] == [
        ["edge.console", "edge.outbound", "edge.reference", "edge.store"],
        ["edge.core"],
        ["edge.index"],
        ["edge.owners"],
        ["edge.hosts"],
        ["edge.assets"],
        ["edge.jobs"],
        ["edge.deletion", "edge.power", "edge.usage", "edge.webhooks"],
        ["edge.notify", "edge.record_metrics"],
        ["edge.http"],
        ["edge.facades.gateway", "edge.facades.heygem", "edge.facades.runpod", "edge.server"],
        ["edge.settings"],
        ["edge.domain"],
        ["edge.app", "edge.container"],
        ["edge.process"],
    ]


def test_layers_of_the_runner_are_these():
    assert [sorted(layer) for layer in RUNNER_LAYERS] == [
        ["runner.egress", "runner.host_facts", "runner.metrics", "runner.slots"],
        ["runner.engines"],
        ["runner.assets", "runner.endpoints", "runner.gpu"],
        ["runner.settings"],
        ["runner.context"],
        ["runner.execution"],
        ["runner.claiming"],
        ["runner.trial"],
        ["runner.host"],
        ["runner.lifecycle"],
        ["runner.app"],
    ]


def packages_of(folder: str) -> set[str]:
    """Return the packages and modules directly in a folder."""
    paths = (ROOT / folder).iterdir()
    return {path.stem for path in paths if path.suffix == ".py" or (path / "__init__.py").exists()} - {"__init__"}


def test_every_package_of_the_runner_has_a_layer():
    named = {package.removeprefix("runner.") for layer in RUNNER_LAYERS for package in layer}
    assert named == packages_of("runner")


def test_every_package_of_the_edge_has_a_layer():
    facades = {f"facades.{name}" for name in packages_of("edge/facades")}
    named = {package.removeprefix("edge.") for layer in EDGE_LAYERS for package in layer}
    assert named == packages_of("edge") - {"facades"} | facades


def test_no_shipped_file_breaks_an_import_rule():
    files = [path for path in tracked() if path.suffix == ".py"]
    shipped = [path for path in files if path.relative_to(ROOT).as_posix().startswith(SHIPPED)]
    assert len(shipped) > 20, "the walker found next to nothing to check"
    assert not [law for path in shipped for law in broken_laws(path.relative_to(ROOT).as_posix(), path.read_text())]


def test_nothing_here_imports_the_http_library_of_litestar():
    """Its errors are not those of httpx2, which everything here catches."""
    imports = re.compile(r"^\s*(import|from) httpx\b", re.MULTILINE)
    files = [path for path in tracked() if path.suffix == ".py"]
    assert not [path for path in files if imports.search(path.read_text())]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("schemas/job.py", "from bus.port import Bus"),
        ("schemas/job.py", "import anyio"),
        ("bus/nats/streams.py", "import edge.parts"),
        ("bus/nats/streams.py", "from runner import agent"),
        ("edge/app.py", "import runner"),
        ("runner/claiming/loop.py", "from edge.store import port"),
        ("runner/claiming/loop.py", "def f():\n    import edge"),
        ("runner/claiming/loop.py", "from ...edge import app"),
        ("runner/claiming/loop.py", "from tests.runner import fakes"),
        ("runner/execution/durable_state.py", "from runner.claiming.loop import ClaimLoop"),
        ("runner/gpu/allocator.py", "from runner.settings import RunnerSettings"),
        ("runner/assets/cache.py", "from runner import gpu"),
        ("runner/app.py", "from runner import surprise"),
        ("edge/store/directory.py", "from edge.core import clock"),
        ("edge/index/index.py", "from edge.assets.service import AssetService"),
        ("edge/jobs/view.py", "from edge.webhooks.dispatcher import WebhookSender"),
        ("edge/usage.py", "from edge.power.views import PowerViews"),
        ("edge/http/auth.py", "from edge.settings import EdgeSettings"),
        ("edge/server/protocol.py", "from edge.facades.gateway import connection"),
        ("edge/facades/runpod.py", "from edge.facades import heygem"),
        ("edge/power/views.py", "from ..http import auth"),
        ("edge/app.py", "from edge import process"),
        ("edge/app.py", "from edge import surprise"),
        ("edge/app.py", "import importlib\nimportlib.import_module('runner.claiming.loop')"),
        ("edge/app.py", "import nats.js"),
        ("runner/claiming/loop.py", "from docker import DockerClient"),
        ("runner/engines/process.py", "import docker"),
        ("runner/gpu/monitor.py", "import pynvml"),
        ("edge/store/directory.py", "import obstore"),
        ("runner/gpu/health.py", "import torch"),
        ("runner/claiming/loop.py", "import litestar"),
        ("lamplighter/client.py", "from edge import app"),
        ("lamplighter/client.py", "import bus"),
        ("lamplighter/client.py", "import structlog"),
        ("lamplighter/cli/jobs.py", "from edge.core import clock"),
        ("lamplighter/cli/jobs.py", "import uvloop"),
        ("edge/app.py", "import httpx"),
        ("images/echo/main.py", "import schemas"),
        ("images/echo/main.py", "from images.preview import lipsync"),
        ("images/echo/main.py", "import torch"),
        ("images/jobkit/jobkit/job.py", "import msgspec"),
        ("images/jobkit/jobkit/job.py", "import schemas.container"),
        ("edge/app.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import x"),
    ],
)
def test_a_planted_breach_is_found(path: str, source: str):
    assert len(broken_laws(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("schemas/job.py", "import msgspec\nfrom schemas.words import Word\nimport datetime"),
        ("bus/nats/streams.py", "import nats\nfrom .port import Bus\nfrom . import state"),
        ("edge/app.py", "import litestar\nfrom bus import jobs\nfrom edge.store import port"),
        ("edge/app.py", "from edge.facades import runpod\nfrom edge.http import routes"),
        ("edge/hosts/enrollment.py", "from edge.owners.api_keys import ApiKeyStore"),
        ("edge/core/concurrency.py", "from edge.store.port import StoreError\nfrom edge.core import clock"),
        ("runner/engines/docker.py", "import docker\nfrom schemas import container"),
        ("lamplighter/cli/up.py", "import edge.app, runner.agent\nfrom lamplighter import sdk\nimport structlog"),
        ("lamplighter/cli/jobs.py", "import click\nfrom lamplighter.cli import display\nimport rich, httpx2, msgspec"),
        ("images/preview/main.py", "import jobkit\nimport torch\nimport numpy"),
        ("images/jobkit/jobkit/job.py", "import json\nfrom .errors import BadInput\nfrom jobkit import errors"),
    ],
)
def test_what_is_allowed_passes(path: str, source: str):
    assert broken_laws(path, source) == []


def strays(text: str) -> list[str]:
    return [match.group() for pattern in (REGISTRY, MACHINE) for match in pattern.finditer(text)]


def test_no_file_names_a_registry_or_a_path_of_this_machine():
    found = {path.relative_to(ROOT).as_posix(): strays(path.read_text(errors="replace")) for path in tracked()}
    assert {name: texts for name, texts in found.items() if texts} == {}


@pytest.mark.parametrize(
    "text",
    [
        "https://" + "py" + "pi.org/simple",
        "files.python" + "hosted.org",
        "deb http://deb." + "debian.org/debian x main",
        "cd /wo" + "rk/main",
        "--find-links=/op" + "t/wheels",
        "'/ro" + "ot/.cache'",
    ],
)
def test_a_planted_address_is_found(text: str):
    assert strays(text)


def test_pyproject_names_the_chosen_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {re.split(r"[\[<>=]", line)[0] for line in project["dependencies"]}
    extras = {
        extra: {re.split(r"[\[<>=]", x)[0] for x in lines} for extra, lines in project["optional-dependencies"].items()
    }
    assert named == {"httpx2", "msgspec", "click", "rich"}
    assert {"litestar", "nats-py", "docker", "nvidia-ml-py"} <= extras["server"]
    assert "torch" in extras["preview"]
    assert "pytest" in extras["dev"]


def test_pynvml_comes_from_nvidia_and_not_from_its_deprecated_namesake():
    assert importlib.metadata.version("nvidia-ml-py")
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("pynvml")


def test_every_pinned_file_has_a_hash():
    """torch is the one exception, and stands in no lock: its builds share a version (deploy/lock.py)."""
    locks = sorted(ROOT.glob("requirements*.lock"))
    assert len(locks) == 8
    for lock in locks:
        entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", lock.read_text(), flags=re.MULTILINE))
        assert all("--hash=sha256:" in entry for entry in entries), lock.name
        assert not any(entry.startswith("torch==") for entry in entries)


def test_a_runner_does_not_load_the_web_framework() -> None:
    """The settings of all processes are read together, and Litestar would cost each runner 8 MB."""
    program = "import sys, lamplighter.cli.runner; print('litestar' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
