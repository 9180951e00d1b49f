"""Run the tests on the code of the built wheels: `python -m deploy.wheel_code on`, and `off` for the checkout.

CI's main job does it (.ci/run), so a wheel that differs from the checkout fails the tests that the checkout passes.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from deploy import wheel_finder
from deploy.wheels import ROOT, build, moved_modules

SITE = Path(sysconfig.get_path("purelib"))
FINDER, CONFIG, START = "_lamplighter_wheel_finder.py", "_lamplighter_wheels.py", "_lamplighter_wheels.pth"
UNPACKED = ROOT / ".cache" / "wheel-code"


def switch_on(folder: Path = UNPACKED, site: Path = SITE) -> list[Path]:
    """Build both wheels, unpack them into `folder`, and make every Python of the environment use them."""
    switch_off(site)
    shutil.rmtree(folder, ignore_errors=True)
    wheels = [file for file in build(ROOT, folder / "built") if file.suffix == ".whl"]
    argv = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-qq",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder / "unpacked"),
    ]
    subprocess.run([*argv, *map(str, wheels)], check=True)
    shutil.copy(wheel_finder.__file__, site / FINDER)
    words = ", ".join(repr(value) for value in (str(ROOT), str(folder / "unpacked"), moved_modules(ROOT)))
    (site / CONFIG).write_text(f"from {Path(FINDER).stem} import install\n\ninstall({words})\n")
    (site / START).write_text(f"import {Path(CONFIG).stem}\n")
    return wheels


def switch_off(site: Path = SITE) -> None:
    """Make every Python of the environment use the checkout."""
    for name in (START, CONFIG, FINDER):
        (site / name).unlink(missing_ok=True)


def main(words: list[str]) -> None:
    match words:
        case ["on"]:
            print("wheel_code: the tests run", ", ".join(file.name for file in switch_on()))
        case ["off"]:
            switch_off()
            print("wheel_code: the tests run the checkout")
        case _:
            sys.exit("usage: python -m deploy.wheel_code on|off")


if __name__ == "__main__":
    main(sys.argv[1:])
