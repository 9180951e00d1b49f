"""The program behind a `command` power driver: it switches a host, whose runner runs while the host is on.

Call: `host_program.py FOLDER on|off|state|boot`. FOLDER/plan.json says how the host behaves (`HostPlan` of
switched_hosts.py). FOLDER/pressed logs every call with its time. FOLDER/power holds the power state and the pid of the
runner.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NO_CAPACITY = 75
HURRY = "hurry"  # a file in the data of an edge that runs as fast_clock


def consume_mishap(folder: Path, plan: dict[str, Any], name: str) -> bool:
    """Return whether this call still meets the mishap `name`, and count it."""
    if not plan[name]:
        return False
    plan[name] -= 1
    part = folder / "plan.part"
    part.write_text(json.dumps(plan))
    part.replace(folder / "plan.json")
    return True


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def power(folder: Path) -> tuple[str, int]:
    """Return the state and the pid in `power`; `off` where there is no file."""
    try:
        word, pid = (folder / "power").read_text().split()
    except FileNotFoundError:
        return "off", 0
    return word, int(pid)


def set_power(folder: Path, word: str, pid: int = 0) -> None:
    """Write `power` in one step: a `state` call at the same time must not read half of it."""
    part = folder / f"power.{os.getpid()}"
    part.write_text(f"{word} {pid}")
    part.replace(folder / "power")


def state(folder: Path, plan: dict[str, Any]) -> str:
    word, pid = power(folder)
    if word == "stopping" and not is_alive(pid) and not plan["hangs"]:
        return "off"
    return word


def on(folder: Path, plan: dict[str, Any]) -> int:
    if consume_mishap(folder, plan, "no_capacity"):
        print("none in stock")  # noqa: T201 - the driver reads it
        return NO_CAPACITY
    if state(folder, plan) in {"starting", "on"}:
        return 0
    if consume_mishap(folder, plan, "boots_that_fail"):
        set_power(folder, "on")
        return 0
    set_power(folder, "starting")
    with (folder / "host.log").open("ab") as log:
        subprocess.Popen([sys.executable, __file__, folder, "boot"], stdout=log, stderr=log, start_new_session=True)
    return 0


def boot(folder: Path, plan: dict[str, Any]) -> None:
    """Wait for the boot time, then become the runner."""
    time.sleep(plan["boot_s"])
    set_power(folder, "on", os.getpid())
    os.chdir(plan["cwd"])
    os.execvpe(plan["argv"][0], plan["argv"], os.environ | plan["environ"])


def off(folder: Path) -> int:
    word, pid = power(folder)
    if word != "off":
        set_power(folder, "stopping", pid)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
    return 0


def main() -> int:
    folder, verb = Path(sys.argv[1]), sys.argv[2]
    plan = json.loads((folder / "plan.json").read_text())
    if verb == "boot":
        boot(folder, plan)
    if verb == "state":
        print(state(folder, plan))  # noqa: T201
        return 0
    with (folder / "pressed").open("a") as log:
        log.write(f"{verb} {time.time()}\n")
    return on(folder, plan) if verb == "on" else off(folder)


if __name__ == "__main__":
    sys.exit(main())
