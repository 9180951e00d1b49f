"""Check the lower bounds of pyproject.toml: `python -m deploy.lower_bounds_check`.

Installs the lowest version that each direct dependency allows into an environment that is thrown away, imports every
module of what we ship, and runs one job of `echo`. A failure means that a bound is too low.
"""

import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = Path(sys.executable).with_name("uv")
SHIPPED = ("schemas", "bus", "edge", "runner", "lamplighter")
EXTRAS = ("server", "libcloud", "remote", "traces", "notify", "sandbox")
IMPORT_ALL = """
import importlib, pkgutil, sys, traceback
failed = 0
names = []
for package in sys.argv[1:]:
    module = importlib.import_module(package)
    names += [package, *(found.name for found in pkgutil.walk_packages(module.__path__, package + "."))]
for name in names:
    if name.endswith("__main__"):
        continue
    try:
        importlib.import_module(name)
    except Exception:
        failed += 1
        print(name, traceback.format_exc(limit=-2), sep=": ")
print(len(names), "modules,", failed, "cannot be imported")
sys.exit(failed > 0)
"""


def main() -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        venv, pins = Path(folder) / "venv", Path(folder) / "pins.txt"
        pins.write_text(indirect_pins())  # uv keeps them where they fit
        extras = [f"--extra={extra}" for extra in EXTRAS]
        lowest = ["--resolution=lowest-direct", f"--python={sys.executable}", f"--output-file={pins}"]
        uv("pip", "compile", "pyproject.toml", *extras, *lowest, "--no-header", "--no-annotate")
        uv("venv", f"--python={sys.executable}", venv)
        uv("pip", "install", f"--python={venv / 'bin/python'}", "--no-deps", "-r", pins)
        python = str(venv / "bin/python")
        imports = subprocess.run([python, "-c", IMPORT_ALL, *SHIPPED], cwd=ROOT, check=False)
        if imports.returncode or not runs_a_job(python, Path(folder) / "data"):
            print("lowest: raise the bounds in pyproject.toml; these were installed:", pins.read_text(), sep="\n")
            return 1
        print(f"lowest: {len(pins.read_text().splitlines())} packages, {time.monotonic() - began:.0f} s")
    return 0


def indirect_pins() -> str:
    """Return the locked versions of what only dependencies ask for, so that no release since then decides."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in EXTRAS for text in project["optional-dependencies"][extra])]
    direct = {re.split(r"[\[<>=]", text)[0] for text in texts}
    locked = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    return "".join(f"{name}=={version}\n" for name, version in locked if name not in direct)


def runs_a_job(python: str, data: Path) -> bool:
    lamplighter = [python, "-m", "lamplighter"]
    up = [*lamplighter, "up", "--port=0", f"--data={data}", "--engine=process", "--json"]
    submit = [*lamplighter, "submit", "echo", f"--data={data}", "--text=hello", "--wait"]
    with subprocess.Popen(up, cwd=ROOT, stdout=subprocess.PIPE) as serving:
        try:
            lit = serving.stdout is not None and serving.stdout.readline()
            return bool(lit) and subprocess.run(submit, cwd=ROOT, check=False, timeout=60).returncode == 0
        finally:
            serving.terminate()


def uv(*words: str | Path) -> None:
    subprocess.run([UV, *map(str, words), "--quiet"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    sys.exit(main())
