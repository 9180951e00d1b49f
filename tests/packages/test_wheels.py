"""The two wheels, installed as a user installs them."""

import ast
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from email.parser import Parser
from pathlib import Path

import pytest

from deploy.relocation import RelocationError
from deploy.wheels import CLIENT, ROOT, SERVER, build, check_client
from schemas.version import VERSION
from tests.packages.environments import Environment
from tests.support.package_index import PackageIndex
from tests.support.releases import check_out, newest_release

FOREIGN = ("schemas", "bus", "edge", "runner", "images")
CLIENT_LIMIT = 15
WITHOUT = {  # what Windows does not have
    "modules": ["uvloop", "fcntl", "resource", "pwd", "grp", "termios", "docker", "nats", "litestar", "structlog"],
    "os": ["fork", "getuid", "geteuid", "chown", "fchmod", "O_NOFOLLOW", "O_DIRECTORY", "O_CLOEXEC", "WNOHANG"],
    "signal": ["SIGKILL", "SIGHUP", "SIGUSR1", "pthread_sigmask", "sigwait"],
    "socket": ["AF_UNIX"],
}
IMPORT_WITHOUT = """
import importlib, json, os, pkgutil, signal, socket, sys
without = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(without.pop("modules")))
import anyio, asyncio, httpx2, rich.console, rich.progress, subprocess, tempfile, threading, zipfile
for module, names in without.items():
    for name in names:
        delattr(sys.modules[module], name)
import lamplighter
names = [found.name for found in pkgutil.walk_packages(lamplighter.__path__, "lamplighter.")]
for name in names:
    if name != "lamplighter.__main__":
        importlib.import_module(name)
from click.testing import CliRunner
from lamplighter.cli import CLIENT_COMMANDS, main
for command in CLIENT_COMMANDS:
    shown = CliRunner().invoke(main, [command, "--help"])
    assert shown.exit_code == 0, shown.output
print(len(names))
"""
SDK_JOB = """
import sys
from lamplighter import Client
with Client(sys.argv[1], sys.argv[2]) as client:
    job = client.submit("echo", text="from the SDK", wait=True)
    print(job.status, job.output.data)
"""
ARE_FOREIGN = (
    "import schemas, bus, edge, runner, images; print({m.VERSION for m in (schemas, bus, edge, runner, images)})"
)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Both wheels, by distribution."""
    built = build(ROOT, tmp_path_factory.mktemp("dist"))
    return {file.name.partition("-")[0].replace("_", "-"): file for file in built if file.suffix == ".whl"}


@pytest.fixture(scope="module")
def client(wheels: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the client alone."""
    made = Environment(tmp_path_factory.mktemp("client"))
    made.install(wheels[CLIENT])
    return made


@pytest.fixture(scope="module")
def server(wheels: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with both, in which packages of others have the names of this repository's folders."""
    folder = tmp_path_factory.mktemp("server")
    made, index = Environment(folder), PackageIndex(folder / "index")
    for name in FOREIGN:
        index.wheel(name, "7.0")
    made.install(*(next((folder / "index" / name).glob("*.whl")) for name in FOREIGN))
    made.install(wheels[CLIENT], wheels[SERVER])
    return made


@pytest.fixture(scope="module")
def serving(server: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What an `up` out of the wheels has printed."""
    with server.up(tmp_path_factory.mktemp("serving") / "data") as said:
        yield said


@pytest.mark.parametrize("distribution", [CLIENT, SERVER])
def test_a_wheel_has_one_package_of_its_own_name(wheels: Mapping[str, Path], distribution: str):
    with zipfile.ZipFile(wheels[distribution]) as archive:
        names = archive.namelist()
        metadata = Parser().parsestr(archive.read(next(n for n in names if n.endswith("METADATA"))).decode())
    package = distribution.replace("-", "_")
    assert {name.split("/")[0] for name in names} == {package, f"{package}-{VERSION}.dist-info"}
    assert f"{package}/py.typed" in names
    requires = metadata.get_all("Requires-Dist", ())
    assert all("extra == 'preview'" in text for text in requires if text.startswith("torch"))
    assert (distribution == SERVER) == any(text.startswith("torch") for text in requires)
    assert not any(text.startswith("httpx>") for text in requires)


def test_the_client_brings_few_distributions(client: Environment):
    found = client.distributions()
    assert len(found) <= CLIENT_LIMIT
    assert {"lamplighter", "httpx2", "msgspec", "click", "rich"} <= found.keys()
    assert not {"httpx", "docker", "litestar", "nats-py", "uvloop", "torch"} & found.keys()


def test_the_client_is_imported_without_what_windows_lacks(client: Environment):
    assert int(client.run_python(IMPORT_WITHOUT, json.dumps(WITHOUT))) > 40


def test_the_client_alone_works_against_an_edge(client: Environment, serving: dict[str, str]):
    at = ("--url", serving["url"], "--key", serving["key"])
    assert client.run_python(SDK_JOB, serving["url"], serving["key"]) == "succeeded {'text': 'from the SDK'}\n"
    done = client.run("submit", "echo", "--text", "by the command", "--wait", *at)
    assert (done.returncode, "by the command" in done.stdout) == (0, True), done.stderr
    found = json.loads(client.run("doctor", "--json", *at).stdout)
    assert {one["name"]: one["what"] for one in found}["version"] == f"edge {VERSION}, this command {VERSION}"


def test_the_client_alone_says_where_the_servers_commands_are(client: Environment):
    for words in (("up",), ("runner", "--join", "x"), ("up", "--help")):
        done = client.run(*words)
        line = f"lamplighter: the command {words[0]} is in lamplighter-server: pip install lamplighter-server\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    shown = client.run("--help")
    assert (shown.returncode, "(pip install lamplighter-server)" in shown.stdout) == (0, True)
    assert client.run("--version").stdout == f"lamplighter, version {VERSION}\n"


def test_both_work_among_packages_of_others_with_the_names_of_our_folders(server: Environment, serving: dict[str, str]):
    data = Path(serving["data"])
    done = server.run("submit", "echo", "--text", "among others", "--wait", "--data", data)
    assert (done.returncode, "among others" in done.stdout) == (0, True), done.stderr
    hosts = json.loads(server.run("hosts", "--json", "--data", data).stdout)
    assert [host["version"] for host in hosts] == [VERSION]
    assert server.run_python(ARE_FOREIGN) == "{'7.0'}\n"
    assert "torch" not in server.distributions()


def test_the_console_and_its_client_are_in_the_wheel(server: Environment, serving: dict[str, str]):
    ask = "import httpx2, sys; print([httpx2.get(sys.argv[1] + path, timeout=60).status_code for path in sys.argv[2:]])"
    paths = ("/console/index.html", "/console/client/index.js")
    assert server.run_python(ask, serving["url"], *paths) == "[200, 200]\n"


def test_an_upgrade_from_the_release_before_keeps_the_data_and_removal_leaves_nothing_else(
    wheels: Mapping[str, Path], tmp_path: Path
):
    (tmp_path / "tree").mkdir()
    tree = check_out(newest_release(), tmp_path / "tree")
    place, data = Environment(tmp_path / "place"), tmp_path / "data"
    empty = place.files()
    place.install(*build_release(tree, tmp_path / "old"))
    assert place.distributions()["lamplighter"] != VERSION
    with place.up(data):
        assert place.run("submit", "echo", "--text", "before", "--wait", "--data", data).returncode == 0
        (before,) = json.loads(place.run("jobs", "--json", "--data", data).stdout)["jobs"]
    place.install(wheels[CLIENT], wheels[SERVER])
    assert place.distributions()[SERVER] == VERSION
    with place.up(data):
        kept = place.run("job", before["id"], "--data", data)
        assert (kept.returncode, "before" in kept.stdout) == (0, True), kept.stderr
        assert place.run("submit", "echo", "--text", "after", "--wait", "--data", data).returncode == 0
    place.uninstall(*place.distributions())
    assert place.files() == empty
    assert list(place.home.iterdir()) == []
    assert data.is_dir()


def build_release(tree: Path, out: Path) -> list[Path]:
    """Build the wheels of an earlier release, as that release did."""
    if (tree / "deploy/wheels.py").exists():
        subprocess.run([sys.executable, "-m", "deploy.wheels", str(out)], cwd=tree, check=True)
    else:  # 0.1.0 was one distribution
        argv = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "-w", str(out), "."]
        subprocess.run(argv, cwd=tree, check=True)
    return list(out.glob("*.whl"))


def test_a_client_that_imports_the_server_is_not_built(tmp_path: Path):
    (tmp_path / "lamplighter/cli").mkdir(parents=True)
    (tmp_path / "lamplighter/jobs.py").write_text(
        "import click\nfrom lamplighter_server.edge import app\nimport uvloop\n"
    )
    (tmp_path / "lamplighter/cli/server_parts.py").write_text("import lamplighter_server\n")
    with pytest.raises(RelocationError) as refused:
        check_client(tmp_path, ("click>=8", "httpx2"))
    lines = str(refused.value).splitlines()
    assert [line.partition(": ")[0] for line in lines[:-1]] == ["lamplighter/jobs.py:2", "lamplighter/jobs.py:3"]


def test_the_repository_itself_builds_no_wheel(tmp_path: Path):
    argv = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])
    assert "this builds no wheels: run `just release`" in done.stderr


def test_every_command_of_the_server_is_in_the_server(wheels: Mapping[str, Path]):
    """A command's module that is missing in deploy/wheels.py would fail at its first use only."""
    with zipfile.ZipFile(wheels[CLIENT]) as archive:
        source = archive.read("lamplighter/cli/__init__.py").decode()
    with zipfile.ZipFile(wheels[SERVER]) as archive:
        modules = {Path(name).stem for name in archive.namelist() if name.startswith("lamplighter_server/cli/")}
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict)
    }
    assert {module for module, _, _ in tables["SERVER_COMMANDS"].values()} <= modules
    assert not {module for module, _, _ in tables["CLIENT_COMMANDS"].values()} & modules
