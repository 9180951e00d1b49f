"""Compiled modules, which every worker and every process of a test would otherwise make for itself: 3 s each time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BYTECODE_DIR = str(ROOT / ".cache" / "bytecode")
BYTECODE_ENVIRON = {"PYTHONPYCACHEPREFIX": BYTECODE_DIR}
COMMANDS = "import lamplighter.cli.edge, lamplighter.cli.runner, lamplighter.cli.up, runner.engines.docker"


def enable_bytecode_cache() -> None:
    """Keep compiled modules in a folder of their own where PYTHONDONTWRITEBYTECODE is set."""
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        os.environ.update(BYTECODE_ENVIRON)
        sys.pycache_prefix = BYTECODE_DIR
        sys.dont_write_bytecode = False


def compile_commands(config: pytest.Config) -> None:
    """Compile what the tests of several workers are about to start at the same time."""
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        subprocess.run([sys.executable, "-c", COMMANDS], cwd=ROOT, env=os.environ | BYTECODE_ENVIRON, check=True)
