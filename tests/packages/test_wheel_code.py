"""CI's main job runs on the code of the built wheels; these tests hold it to that."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import edge.process
import lamplighter.cli.up
import schemas.job
from deploy import wheel_code
from deploy.wheels import ROOT

SHOW = "import edge.process, lamplighter.cli.up, schemas.job; print(edge.process.__name__, schemas.job.__file__)"


def run(code: str, cwd: Path, *options: str) -> list[str]:
    """Run `code` with an empty environment, so that nothing but the Python itself says where modules are."""
    argv = [sys.executable, *options, "-c", code]
    return subprocess.run(argv, cwd=cwd, env={}, capture_output=True, text=True, check=True).stdout.split()


def test_where_ci_asks_for_it_every_module_comes_from_the_wheels(tmp_path: Path):
    is_asked = os.environ.get("REQUIRE_WHEELS") == "1"
    if not is_asked:
        pytest.skip("the tests run the checkout: `python -m deploy.wheel_code on`, then REQUIRE_WHEELS=1")
    for module in (edge.process, lamplighter.cli.up, schemas.job):
        assert Path(module.__file__).is_relative_to(wheel_code.UNPACKED), module
    for cwd in (ROOT, tmp_path):
        name, file = run(SHOW, cwd)
        assert name == "lamplighter_server.edge.process"
        assert Path(file).is_relative_to(wheel_code.UNPACKED)


def test_the_finder_gives_one_module_under_both_names_and_leaves_other_trees_alone(tmp_path: Path):
    # -S: without the finder of CI, which the environment may have already.
    site, other = tmp_path / "site", tmp_path / "other"
    site.mkdir()
    (other / "lamplighter").mkdir(parents=True)
    (other / "lamplighter/__init__.py").write_text("")
    wheel_code.switch_on(tmp_path / "wheels", site)
    packages = sysconfig.get_path("purelib")
    start = f"import sys; sys.path[1:1] = [{str(site)!r}, {packages!r}]; import _lamplighter_wheels\n"
    same = "import edge.process as a, lamplighter_server.edge.process as b; print(a is b, a.__spec__.name)"
    assert run(start + same, tmp_path, "-S") == ["True", "lamplighter_server.edge.process"]
    assert run(start + "import lamplighter; print(lamplighter.__file__)", tmp_path, "-S")[0].startswith(str(tmp_path))
    assert run(start + "import lamplighter; print(lamplighter.__file__)", other, "-S") == [
        str(other / "lamplighter/__init__.py")
    ]
    wheel_code.switch_off(site)
    assert list(site.glob("*.py*")) == []
