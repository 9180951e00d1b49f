"""justw and deploy/install.py with real pips, on a project of small packages that lie in an index made here."""

import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from deploy import install
from tests.support import package_registry
from tests.support.package_index import BACKEND, BUILD_SYSTEM, PackageIndex

ROOT = Path(__file__).parent.parent
PYPROJECT = (
    BUILD_SYSTEM
    + """\
[project]
name = "lamplighter"
version = "0.1"
[project.optional-dependencies]
preview = ["torch==1.2.3"]
"""
)
JUST = '#!/bin/sh\necho "just $*" >>calls\n'
JUSTFILE = "up *args:\ndemo *args:\ntest *args: lint\nlint:\n"
RUNTIME = {"rust-just": "1.0", "asks": "1.0", "asked": "1.0", "more": "1.0", "lamplighter": "0.1"}
DEMO = RUNTIME | {"numbers": "1.0", "torch": "1.2.3+cpu", "face-models": "1.0", "clips": "1.0"}
EVERYTHING = DEMO | {"tester": "1.0", "from-source": "1.0"}


@pytest.fixture(scope="session")
def pips(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """An environment with nothing in it but the oldest pip that justw works with, and one with the newest."""
    environments = {}
    for age, wanted in (("oldest", "pip==23.0"), ("newest", "pip")):
        wheel = package_registry.fetch_wheel(wanted)
        environments[age] = tmp_path_factory.mktemp(age) / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environments[age]], check=True)
        python = environments[age] / "bin/python"
        # Not the wheel's own pip: run from the wheel, it would be compiled at each start.
        argv = [
            sys.executable,
            "-I",
            "-m",
            "pip",
            "--python",
            python,
            "-qq",
            "install",
            "--no-index",
            "--no-deps",
            wheel,
        ]
        subprocess.run(argv, check=True, env={"PATH": os.environ["PATH"]})
    return environments


class Project:
    """A copy of justw beside small locks, whose environment is there and empty."""

    def __init__(self, folder: Path, index: PackageIndex, venv: Path) -> None:
        self.folder = folder
        self.index = index
        self.environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHON": sys.executable}
        self.environ["PIP_INDEX_URL"] = index.url
        for name in ("justw", "deploy/install.py", "schemas/version.py"):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        (folder / "pyproject.toml").write_text(PYPROJECT)
        (folder / "backend.py").write_text(BACKEND.format(stem="lamplighter-0.1", name="lamplighter", version="0.1"))
        (folder / "justfile").write_text(JUSTFILE)
        shutil.copytree(venv, folder / ".venv", symlinks=True)
        self.lock("setup", index.wheel("rust-just", "1.0", scripts={"just": JUST}))
        asks = index.wheel("asks", "1.0", requires=["asked[extra]"])
        asked = index.wheel("asked", "1.0", requires=['more ; extra == "extra"'])
        self.lock("runtime", asks, asked, index.wheel("more", "1.0"))
        self.lock("preview", index.wheel("numbers", "1.0"))
        self.lock("models", index.wheel("face-models", "1.0", requires=["never-released"]))
        self.lock("samples", index.wheel("clips", "1.0", requires=["never-released"]))
        elsewhere = index.wheel("elsewhere", "1.0").replace("1.0 ", "1.0 ; sys_platform == 'elsewhere' ", 1)
        self.lock("dev", index.source("from-source", "1.0"), index.wheel("tester", "1.0"), elsewhere)
        (folder / install.CUDA_LOCK).write_text(index.wheel("cuda-things", "1.0"))
        index.wheel("torch", "1.2.3+cpu", requires=["never-released"])
        index.wheel("torch", "1.2.3", requires=["never-released"])
        for name in ("asks", "asked", "more", "numbers", "torch", "tester", "rust-just"):
            index.wheel(name, "9.0")  # released since

    def lock(self, part: str, *entries: str) -> None:
        (self.folder / install.LOCKS[part]).write_text("# a comment\n" + "".join(entries))

    def justw(self, *args: str, **changes: str) -> subprocess.CompletedProcess[str]:
        environ = self.environ | changes
        argv = [self.folder / "justw", *args]
        return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=100, check=False)

    def installed(self) -> dict[str, str]:
        """Name and version of everything that is installed, but for pip."""
        code = "import importlib.metadata as m; print(*(f'{d.name} {d.version}' for d in m.distributions()), sep='\\n')"
        argv = [self.folder / ".venv/bin/python", "-I", "-c", code]
        listed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
        return {name: version for name, version in map(str.split, listed) if name not in {"pip", "setuptools"}}

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def project(tmp_path: Path, pips: Mapping[str, Path]) -> Project:
    return Project(tmp_path, PackageIndex(tmp_path / "index"), pips["newest"])


@pytest.fixture(scope="module")
def set_up_once(tmp_path_factory: pytest.TempPathFactory, pips: Mapping[str, Path]) -> tuple[Project, Path]:
    """A project after `justw setup up`, and a copy of its folder."""
    folder = tmp_path_factory.mktemp("set-up")
    made = Project(folder / "project", PackageIndex(folder / "project/index"), pips["newest"])
    done = made.justw("setup", "up")
    assert (done.returncode, done.stderr) == (0, "")
    return made, shutil.copytree(made.folder, folder / "copy", symlinks=True)


@pytest.fixture
def set_up_project(set_up_once: tuple[Project, Path]) -> Project:
    """A project after `justw setup up`. Its folder has the same path in each test, because its stamps depend on it."""
    made, copy = set_up_once
    shutil.rmtree(made.folder)
    shutil.copytree(copy, made.folder, symlinks=True)
    return made


HOSTILE = """\
[global]
index-url = {index}
constraint = {folder}/constraint.txt
require-virtualenv = true
require-hashes = true
quiet = 3
user = true
pre = true
no-binary = :all:
[install]
target = {folder}/elsewhere
root = {folder}/elsewhere
dry-run = true
upgrade = true
upgrade-strategy = eager
ignore-installed = true
"""


@pytest.mark.parametrize("age", ["oldest", "newest"])
def test_any_pip_installs_exactly_what_is_locked_whatever_its_settings(
    tmp_path: Path, pips: Mapping[str, Path], age: str
):
    """`asks` asks for an extra of `asked`, of which there is a newer release: to resolve is to refuse that one."""
    project = Project(tmp_path, PackageIndex(tmp_path / "index"), pips[age])
    del project.environ["PIP_INDEX_URL"]
    settings = tmp_path / ".config/pip/pip.conf"
    settings.parent.mkdir(parents=True)
    settings.write_text(HOSTILE.format(index=project.index.url, folder=tmp_path))
    (tmp_path / "constraint.txt").write_text("asked>=2\ntorch<1\n")
    shadow = tmp_path / "shadow/asked-1.0.dist-info"
    shadow.mkdir(parents=True)
    (shadow / "METADATA").write_text("Metadata-Version: 2.1\nName: asked\nVersion: 1.0\n")
    hostile = {
        "PIP_PREFIX": str(tmp_path / "elsewhere"),
        "PIP_NO_DEPS": "0",
        "PIP_USER": "1",
        "PYTHONPATH": str(shadow.parent),
    }
    done = project.justw("setup", **hostile)
    assert (done.returncode, done.stderr) == (0, "")
    assert project.installed() == EVERYTHING
    assert not (tmp_path / "elsewhere").exists()


def test_the_first_run_says_how_much_and_the_second_does_nothing(project: Project):
    shutil.rmtree(project.folder / ".venv")
    first = project.justw("up", "--port", "0", "two words")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.splitlines() == [
        f"justw: making .venv with Python {sys.version.split()[0]}",
        "justw: installing 4 packages (1 MB)",
        "justw: ready",
    ]
    shutil.rmtree(project.folder / "index")  # a second run needs none
    second = project.justw("up")
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert project.calls() == ["just up --port 0 two words", "just up"]


def test_a_verb_installs_what_it_needs(project: Project):
    for args, expected in (
        (["never-heard-of"], {"rust-just": "1.0"}),
        ([], {"rust-just": "1.0"}),
        (["up"], RUNTIME),
        (["setup", "demo"], DEMO),
        (["lint"], EVERYTHING),
    ):
        assert project.justw(*args).returncode == 0
        assert project.installed() == expected
    assert project.calls() == ["just never-heard-of", "just ", "just up", "just lint"]


def test_verbs_with_an_environment_of_their_own_are_verbs_of_the_justfile():
    just = Path(sys.executable).with_name("just")
    listed = subprocess.run([just, "--summary"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(install.VERBS) - {"", "runpod"} <= set(listed.stdout.split())


def test_a_changed_lock_is_installed(set_up_project: Project):
    set_up_project.lock("runtime", *(set_up_project.index.wheel(name, "2.0") for name in ("asks", "asked", "more")))
    done = set_up_project.justw("setup", "up")
    assert done.stdout.splitlines() == ["justw: installing 3 packages (1 MB)", "justw: ready"]
    assert set_up_project.installed() == RUNTIME | dict.fromkeys(("asks", "asked", "more"), "2.0")


def test_a_changed_version_of_the_project_is_installed(set_up_project: Project):
    for name in ("pyproject.toml", "backend.py"):
        path = set_up_project.folder / name
        path.write_text(path.read_text().replace("0.1", "0.2"))
    set_up_project.justw("setup", "up")
    assert set_up_project.installed() == RUNTIME | {"lamplighter": "0.2"}


def test_an_interrupted_setup_goes_on_where_it_was(project: Project):
    tester = (project.folder / install.LOCKS["dev"]).read_text()
    project.index.withdraw("tester")
    broken = project.justw("setup")
    assert broken.returncode == 1
    assert broken.stderr.endswith("justw: setup failed: fix the error above and run it again\n")
    assert "tester" in broken.stderr
    for name in DEMO:
        if name != "lamplighter":
            project.index.withdraw(name)  # what is there is not fetched again
    project.index.wheel("tester", "1.0")
    project.index.source("from-source", "1.0")
    assert tester == (project.folder / install.LOCKS["dev"]).read_text()
    done = project.justw("setup")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["justw: installing 2 packages (1 MB)", "justw: ready"]
    assert project.installed() == EVERYTHING


def test_a_package_that_was_left_half_unpacked_is_installed_again(set_up_project: Project):
    (site,) = (set_up_project.folder / ".venv/lib").glob("python3*/site-packages")
    (site / "asked.py").unlink()
    (site / "asked-1.0.dist-info/INSTALLER").unlink()
    (site / "asked-1.0.dist-info/RECORD").unlink()
    (set_up_project.folder / ".venv/justw/runtime").unlink()
    assert set_up_project.justw("setup", "up").returncode == 0
    assert (site / "asked.py").exists()
    assert set_up_project.installed() == RUNTIME


def test_a_venv_that_does_not_run_is_made_again(set_up_project: Project):
    for program in ("python", "pip"):
        (set_up_project.folder / ".venv/bin" / program).unlink()
    done = set_up_project.justw("setup", "up")
    assert done.stdout.startswith("justw: making .venv with")
    assert set_up_project.installed() == RUNTIME


def test_two_at_once_install_once(project: Project):
    argv = [project.folder / "justw", "setup", "up"]
    both = [subprocess.Popen(argv, env=project.environ, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=100)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(outputs).count("justw: installing") == 1
    assert "".join(outputs).count("justw: ready") == 1
    assert project.installed() == RUNTIME


def test_cuda_torch_is_what_the_variable_asks_for(project: Project):
    project.justw("setup", "demo")
    assert project.justw("setup", "demo", LAMPLIGHTER_TORCH="cuda").returncode == 0
    assert project.installed() == DEMO | {"torch": "1.2.3", "cuda-things": "1.0"}
    project.justw("setup", "demo")
    assert project.installed()["torch"] == "1.2.3+cpu"


def test_where_pip_finds_no_cpu_build_the_plain_one_is_installed_with_what_it_needs(project: Project):
    project.index.withdraw("torch")
    project.index.wheel("torch", "1.2.3")
    done = project.justw("setup", "demo")
    said, fallback, ready = done.stdout.splitlines()
    assert (said, ready) == ("justw: installing 8 packages (192 MB)", "justw: ready")
    assert fallback.startswith("justw: pip finds no torch 1.2.3+cpu where it is set up to look")
    assert fallback.endswith("the plain build is installed: 2 packages (527 MB)")
    assert project.installed() == DEMO | {"torch": "1.2.3", "cuda-things": "1.0"}


def test_a_terminal_sees_how_far_it_is(project: Project):
    ours, its = pty.openpty()
    with subprocess.Popen([project.folder / "justw", "setup", "up"], env=project.environ, stdout=its) as process:
        os.close(its)
        seen = b""
        while True:
            try:
                seen += os.read(ours, 1000)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert process.returncode == 0
    assert re.search(rb"\rjustw: \d+ of \d+ MB\x1b\[K", seen)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"PYTHON": "no-such-python"}, "justw: no Python 3.11 or newer found: install one, or name it with PYTHON=…\n"),
        ({"LAMPLIGHTER_TORCH": "rocm"}, "justw: LAMPLIGHTER_TORCH is 'rocm': set it to cpu or cuda\n"),
    ],
)
def test_what_it_cannot_work_with_is_one_line(project: Project, changes: dict[str, str], says: str):
    if "PYTHON" in changes:
        shutil.rmtree(project.folder / ".venv")
    refused = project.justw("setup", **changes)
    assert (refused.returncode, refused.stderr) == (1, says)


def test_a_python_without_venv_is_named_with_the_way_out(project: Project):
    shutil.rmtree(project.folder / ".venv")
    bare = project.folder / "bare"
    bare.write_text(f'#!/bin/sh\ncase "$2" in *venv*) exit 1 ;; *) exec {sys.executable} "$@" ;; esac\n')
    bare.chmod(0o755)
    refused = project.justw("setup", PYTHON="./bare")
    assert refused.stderr == "justw: ./bare has no venv module: install it (on Debian: apt-get install python3-venv)\n"


@pytest.mark.parametrize("age", ["oldest", "newest"])
def test_of_pips_settings_those_stay_that_say_where_files_come_from(
    tmp_path: Path, pips: Mapping[str, Path], age: str, monkeypatch: pytest.MonkeyPatch
):
    settings = tmp_path / "pip.conf"
    settings.write_text(
        "[global]\nindex-url = https://global.example\nfind-links =\n    one\n    two\ntimeout = 9\nconstraint = c\n"
        "use-feature = truststore fast-deps\n[install]\nindex-url = https://install.example\nuser = true\n"
    )
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_TRUSTED_HOST", "env.example")
    monkeypatch.setenv("PIP_TIMEOUT", "10")
    monkeypatch.setenv("PIP_QUIET", "3")
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PIP_TARGET", "elsewhere")
    found = install.locations(pips[age] / "bin/python")
    ours = {"INDEX_URL", "FIND_LINKS", "TIMEOUT", "TRUSTED_HOST", "USE_FEATURE", "CONSTRAINT", "USER", "TARGET"}
    assert {name: value for name, value in found.items() if name.removeprefix("PIP_") in ours} == {
        "PIP_INDEX_URL": "https://install.example",
        "PIP_FIND_LINKS": "one two",
        "PIP_TIMEOUT": "10",
        "PIP_TRUSTED_HOST": "env.example",
        "PIP_USE_FEATURE": "truststore",
    }
