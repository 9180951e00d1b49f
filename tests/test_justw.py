"""justw on a project of a few empty files, with a Python that only writes down what it was asked to do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCKS = tuple(f"requirements{part}.lock" for part in ("", "-dev", "-preview", "-models", "-samples"))

# Stands for the Python found on PATH: runs real one-liners; in the .venv that it makes, programs write themselves down.
PYTHON = """\
#!/bin/sh
case "$*" in
  "-m venv"*)
    echo venv >>calls
    mkdir -p .venv/bin
    for program in python pip just; do cp program .venv/bin/$program; done ;;
  *) exec {python} "$@" ;;
esac
"""
PROGRAM = """\
#!/bin/sh
echo "$(basename "$0") $*" >>calls
case "$*" in *--editable*) [ ! -e break ] ;; esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "justw", tmp_path)
    for name in LOCKS:
        (tmp_path / name).touch()
    (tmp_path / "pyproject.toml").write_text('preview = ["torch==1.2.3", "numpy"]\n')
    for name, text in (("stub-python", PYTHON.format(python=sys.executable)), ("program", PROGRAM)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def environment(**changes: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHON": "./stub-python", **changes}


def justw(project: Path, *args: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [project / "justw", *args], env=environment(**changes), capture_output=True, text=True, timeout=30, check=False
    )


def calls(project: Path) -> list[str]:
    return (project / "calls").read_text().splitlines()


def installs(project: Path) -> int:
    """How often the whole way was gone: its last step is this project itself."""
    return sum("--editable" in call for call in calls(project))


def test_the_first_run_says_its_steps_and_the_second_does_nothing(project: Path):
    first = justw(project, "setup")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.splitlines() == [
        "justw: making .venv with ./stub-python",
        "justw: installing the locked packages",
        "justw: installing torch 1.2.3 (cpu)",
        "justw: installing lamplighter itself",
        "justw: ready",
    ]
    before = calls(project)
    second = justw(project, "setup")
    assert (second.returncode, second.stdout, calls(project)) == (0, "", before)


def test_a_verb_reaches_just_with_its_arguments_as_they_are(project: Path):
    assert justw(project, "test", "-k", "two words").returncode == 0
    assert calls(project)[-1] == "just test -k two words"


@pytest.mark.parametrize("name", [*LOCKS, "pyproject.toml", "justw"])
def test_it_installs_again_when_what_it_installs_changed(project: Path, name: str):
    justw(project, "setup")
    with (project / name).open("a") as file:
        file.write("# changed\n")
    assert justw(project, "setup").returncode == 0
    assert installs(project) == 2
    assert calls(project).count("venv") == 1


def test_an_interrupted_setup_is_gone_through_again(project: Path):
    (project / "break").touch()
    broken = justw(project, "setup")
    assert broken.returncode == 1
    assert broken.stderr.endswith("justw: setup failed: mend what is said above and run it again\n")
    (project / "break").unlink()
    assert justw(project, "setup").stdout.endswith("justw: ready\n")


def test_a_venv_that_does_not_run_is_made_again(project: Path):
    justw(project, "setup")
    for program in ("python", "pip"):
        (project / ".venv/bin" / program).unlink()
    assert justw(project, "setup").returncode == 0
    assert calls(project).count("venv") == 2


def test_two_at_once_install_once(project: Path):
    both = [
        subprocess.Popen([project / "justw", "setup"], env=environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=30)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(outputs).count("justw: ready") == 1
    assert installs(project) == 1


def test_cuda_torch_is_what_the_variable_asks_for(project: Path):
    justw(project, "setup", LAMPLIGHTER_TORCH="cuda")
    torch = [call.rpartition(" ")[2] for call in calls(project) if "torch==" in call]
    assert torch == ["torch==1.2.3"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"PYTHON": "no-such-python"}, "justw: no Python 3.11 or newer found: install one, or name it with PYTHON=…\n"),
        ({"LAMPLIGHTER_TORCH": "rocm"}, "justw: LAMPLIGHTER_TORCH is 'rocm': set it to cpu or cuda\n"),
    ],
)
def test_what_it_cannot_work_with_is_one_line(project: Path, changes: dict[str, str], says: str):
    refused = justw(project, "setup", **changes)
    assert (refused.returncode, refused.stderr) == (1, says)


def test_a_python_without_venv_is_named_with_the_way_out(project: Path):
    (project / "bare").write_text(f'#!/bin/sh\ncase "$2" in *venv*) exit 1 ;; *) exec {sys.executable} "$@" ;; esac\n')
    (project / "bare").chmod(0o755)
    refused = justw(project, "setup", PYTHON="./bare")
    assert refused.stderr == "justw: ./bare has no venv module: install it (on Debian: apt-get install python3-venv)\n"
