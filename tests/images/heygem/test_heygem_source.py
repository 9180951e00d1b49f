"""The worker's source: what Python 3.8 can read, with the standard library alone, and nothing of the vendor's."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.images.heygem.worker_runs import (
    WorkerSamples,
    copy_vendor,
    job_folder,
    start_worker,
    wait_for_end,
    worker_environ,
)
from tests.images.job_process import IMAGES

HEYGEM = IMAGES / "heygem"
SOURCES = sorted([*HEYGEM.glob("*.py"), *HEYGEM.glob("heygem_worker/**/*.py"), *IMAGES.glob("jobkit/jobkit/*.py")])
OWN = {"heygem_worker", "jobkit"}
SINCE_39 = (
    "removeprefix",
    "removesuffix",
    "to_thread",
    "functools.cache\n",
    "functools import cache",
    "math.lcm",
    ".readlink()",
)
VENDORS_FILES = re.compile(r"\.(so|pth|onnx|pt|engine|pyc|bin|whl)$")

NEEDS_FFMPEG = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")),
    reason="PyAV is for our own Python, another one needs ffmpeg: on Debian, apt-get install ffmpeg",
)


def imported(source: Path) -> set[str]:
    """Top-level names of all that it imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: packages are named in full here"
            found.add(str(node.module).partition(".")[0])
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_python_38_can_read_it_and_needs_nothing_else(source: Path) -> None:
    text = source.read_text()
    tree = ast.parse(text, feature_version=(3, 8))
    assert imported(source) <= sys.stdlib_module_names | OWN
    assert not [word for word in SINCE_39 if word in text]
    futures = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    needs = any(isinstance(node, ast.AnnAssign | ast.FunctionDef | ast.ClassDef) for node in ast.walk(tree))
    assert futures or not needs, "annotations are only text on 3.8, where list[str] and X | None are errors"


def test_nothing_of_the_vendors_is_here() -> None:
    assert not [
        path for path in HEYGEM.rglob("*") if VENDORS_FILES.search(path.name) and "__pycache__" not in path.parts
    ]
    assert max(path.stat().st_size for path in HEYGEM.rglob("*") if path.is_file()) < 32_768


def python(version: str) -> str:
    """An interpreter of that version on this machine, or why there is none."""
    places = [*Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), Path(f"/usr/bin/python{version}")]
    found = next((str(path) for path in places if path.exists()), None)
    if found is None:
        pytest.skip(f"no Python {version} on this machine; its syntax is checked above all the same")
    return found


@NEEDS_FFMPEG
@pytest.mark.parametrize(("version", "vendor"), [("3.8", "gen1"), ("3.9", "gen2"), ("3.8", "unknown")])
def test_runs_a_job_under_that_python(tmp_path: Path, samples: WorkerSamples, vendor: str, version: str) -> None:
    interpreter = python(version)
    folder = job_folder(tmp_path, samples)
    with start_worker(worker_environ(folder, samples, vendor), interpreter) as process:
        ended = wait_for_end(process, folder)
    assert ended.code == 0, ended.log


@NEEDS_FFMPEG
def test_goes_on_under_the_vendors_python(tmp_path: Path, samples: WorkerSamples) -> None:
    """Started by ours, as the process engine does, on a box whose HeyGem is compiled for 3.8."""
    theirs = python("3.8")
    home = tmp_path / "code"
    copy_vendor("gen2", home)
    (home / "service" / "more.cpython-38-x86_64-linux-gnu.so").touch()
    with (home / "service" / "trans_dh_service.py").open("a") as module:
        module.write("\nimport sys\nsay('python %d.%d' % sys.version_info[:2])\n")
    folder = job_folder(tmp_path / "job", samples)
    path = os.pathsep.join([str(Path(sys.executable).parent), str(Path(theirs).parent), os.environ["PATH"]])
    env = worker_environ(folder, samples, "gen2", HEYGEM_HOME=str(home), PATH=path)
    with start_worker(env) as process:
        ended = wait_for_end(process, folder)
    assert ended.code == 0, ended.log
    assert "python 3.8" in ended.log


def test_real_old_pythons_compile_it(tmp_path: Path) -> None:
    """Where they are: the parser of the version itself."""
    argv = [
        python("3.8"),
        "-I",
        "-S",
        "-c",
        "import sys; [compile(open(p, encoding='utf-8').read(), p, 'exec') for p in sys.argv[1:]]",
    ]
    done = subprocess.run([*argv, *map(str, SOURCES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
