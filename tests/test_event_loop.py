"""What hangs fails by its name, and what comes after it still runs: pytest on two files of a few tests."""

import os
import subprocess
import sys

import pytest

from tests.support.doc_pages import ROOT

TIMEOUT_S = 2
HANGS = """
import asyncio, contextlib, time
import anyio, pytest
from hypothesis import given, strategies as st


@pytest.fixture(scope="module")
async def of_the_file():
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep_forever)
        yield "there"
        tasks.cancel_scope.cancel()

@pytest.fixture
async def never_there():
    await anyio.sleep_forever()

@pytest.fixture
async def never_gone():
    yield
    await anyio.sleep_forever()


async def test_waits(of_the_file):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep_forever)

async def test_waits_in_a_shield():
    with anyio.CancelScope(shield=True):
        await anyio.sleep_forever()

async def test_blocks():
    time.sleep(60)

def test_has_no_loop():
    time.sleep(60)

@given(st.booleans())
async def test_is_drawn(drawn):
    await anyio.sleep_forever()

async def test_is_set_up(never_there):
    pass

async def test_is_torn_down(never_gone):
    pass

async def test_waits_and_is_torn_down(never_gone):
    await anyio.sleep_forever()

async def test_comes_after_them(of_the_file):
    assert of_the_file == "there"
    assert type(asyncio.get_running_loop()).__module__ == "uvloop"
"""
SWALLOWS = """
import anyio, contextlib

async def test_swallows_its_cancellation():
    while True:
        with contextlib.suppress(BaseException):
            await anyio.sleep_forever()

def test_comes_after_it():
    pass
"""
PLUGIN = 'pytest_plugins = ["tests.event_loop", "tests.parallel"]\n'


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """What pytest's short summary says of which test, sorted."""
    folder = tmp_path_factory.mktemp("hangs")
    for name, text in (("conftest", PLUGIN), ("test_hangs", HANGS), ("test_swallows", SWALLOWS)):
        (folder / f"{name}.py").write_text(text)
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "-n", "2", "--dist", "loadfile"]
    options = [f"--timeout={TIMEOUT_S}", "-o", "anyio_mode=auto", "-c", "/dev/null", f"--rootdir={folder}", str(folder)]
    for name in ("xdist", "pytest_timeout", "anyio"):  # and none of those that take seconds to import
        argv += ["-p", name]
    environ = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [*argv, *options], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stdout.partition("short test summary info")[2].splitlines()
    return sorted((line.split()[1].rpartition("::")[2], line.split()[0]) for line in lines if "::" in line)


def test_what_hangs_fails_by_its_name_and_the_run_goes_on(said: list[tuple[str, str]]):
    assert said == [
        ("test_blocks", "FAILED"),
        ("test_comes_after_it", "PASSED"),
        ("test_comes_after_them", "PASSED"),
        ("test_has_no_loop", "FAILED"),
        ("test_is_drawn", "FAILED"),
        ("test_is_set_up", "ERROR"),
        ("test_is_torn_down", "ERROR"),
        ("test_is_torn_down", "PASSED"),
        ("test_swallows_its_cancellation", "FAILED"),
        ("test_waits", "FAILED"),
        ("test_waits_and_is_torn_down", "ERROR"),
        ("test_waits_and_is_torn_down", "FAILED"),
        ("test_waits_in_a_shield", "FAILED"),
    ]
