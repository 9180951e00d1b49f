"""Environments that the built wheels are installed into, and programs that run there without the checkout."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.wheels import ROOT
from tests.support import job_user
from tests.support.package_registry import run_download

UV = Path(sys.executable).with_name("uv")


class Environment:
    """A virtual environment, and an empty home for what runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "venv"
        self.home = folder / "home"
        self._bytecode = folder / "bytecode"  # uv compiles nothing, so every start would compile all that it imports
        self.home.mkdir(parents=True)
        subprocess.run([UV, "venv", "--quiet", f"--python={sys.executable}", self.folder], check=True)
        self.python = self.folder / "bin/python"
        self.program = self.folder / "bin/lamplighter"

    def install(self, *wanted: str | Path) -> None:
        """Install from the package index, of the dependencies those versions that the lock file has."""
        lock = ROOT / "requirements.lock"
        shutil.rmtree(self._bytecode, ignore_errors=True)  # a newer module may have the size and time of the older
        run_download([UV, "pip", "install", "--quiet", f"--python={self.python}", f"--constraint={lock}", *wanted])

    def uninstall(self, *names: str) -> None:
        subprocess.run([UV, "pip", "uninstall", "--quiet", f"--python={self.python}", *names], check=True)

    def distributions(self) -> dict[str, str]:
        """Return the versions of all that is installed."""
        listed = subprocess.run(
            [UV, "pip", "list", "--format=json", f"--python={self.python}"], capture_output=True, check=True
        )
        return {one["name"]: one["version"] for one in json.loads(listed.stdout)}

    def files(self) -> set[str]:
        """Return all files and folders, but for compiled modules and uv's own lock."""
        found = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*"))
        return {path for path in found if "__pycache__" not in path and path != ".lock"}

    @property
    def environ(self) -> dict[str, str]:
        """The variables of a program that runs here: nothing leads to the checkout."""
        kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "LANG") if name in os.environ}
        return kept | {"HOME": str(self.home), "PYTHONPYCACHEPREFIX": str(self._bytecode), **job_user.runner_settings()}

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run `lamplighter` to its end."""
        argv = [str(self.program), *map(str, words)]
        return subprocess.run(
            argv, capture_output=True, text=True, check=False, env=self.environ, cwd=self.home, timeout=100
        )

    def run_python(self, code: str, *words: str) -> str:
        """Run `code`, which must succeed; return what it printed."""
        argv = [str(self.python), "-c", code, *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=self.environ, cwd=self.home)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def up(self, data: Path, *more: str) -> Iterator[dict[str, str]]:
        """Run `lamplighter up` on the process engine; yield what it printed. It must end without an error."""
        argv = [str(self.program), "up", "--port=0", f"--data={data}", "--engine=process", "--json", *more]
        with subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environ, cwd=self.home
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            assert line, process.stderr.read()
            try:
                yield json.loads(line)
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(60)
        assert process.returncode == 0
