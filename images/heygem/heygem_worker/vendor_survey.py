"""Print a line of JSON for each fact about this image that the worker's assumptions about the vendor depend on.

Each fact is printed as soon as it is known, so that an image that fails later still shows the earlier facts. The
selfcheck (survey.py, deploy/heygem_check.py) runs one job this way and reads the lines.
"""

from __future__ import annotations

import collections
import importlib.util
import inspect
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from heygem_worker import interpreter, label, loading, media_tools, private_folder, queue_timeout
from heygem_worker import work as worker
from heygem_worker.loading import LoadedVendor
from heygem_worker.module_vendors import MODULE
from heygem_worker.settings import home
from jobkit import Job

PREFIX = "fact: "  # begins each line
NAMES = (
    "TransDhTask", "TransDhTask.instance", "TransDhTask.__init__", "TransDhTask.work", "Status", "a", "init_p",
    "get_run_flag", "task_dic", "write_video",
)  # fmt: skip
DETECTORS = "face_detect_utils/resources"
DRIVER = ("libcuda.so*", "libnvidia-ml.so*", "libnvidia-ptxjitcompiler.so*", "libnvcuvid.so*")
DRIVER_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib/wsl")
OUR_FILES = {"config.ini", "frames.count", "label.txt", "label.font", "labelled.mp4"}
FILES_PER_FOLDER_LIMIT = 5  # files of one folder that are listed by name


def print_fact(name: str, found: Any) -> None:
    """Write one fact to the job's log (stderr)."""
    print(PREFIX + json.dumps({"name": name, "found": found}, ensure_ascii=False), file=sys.stderr, flush=True)


def load() -> LoadedVendor:
    """Load the vendor as the worker does, and print the facts known before and after."""
    for name, find in FACTS_BEFORE_LOAD.items():
        print_fact(name, find(home()))
    began = time.monotonic()
    loaded = loading.load()
    print_fact("load_s", round(time.monotonic() - began, 1))
    print_fact("engine", loaded.vendor.name)
    print_fact("ready_lines", list(loaded.vendor.ready_lines))
    print_fact("functions", {name: _signature(name) for name in NAMES})
    print_fact("marks", {switch: str(label.find_vendor_mark(switch, loaded.folders)) for switch in label.VENDOR_MARKS})
    print_fact("written_by_load", _find_written_files(loaded.folders))
    return loaded


def work(job: Job, loaded: LoadedVendor) -> dict[str, Any]:
    """Run the job as the worker does, then print the files written, the frames counted and the timeouts used."""
    try:
        return worker.work(job, loaded)
    finally:
        print_fact("written_by_job", _find_written_files(loaded.folders))
        print_fact("frames_counted", loaded.folders.frames.stat().st_size if loaded.folders.frames.exists() else None)
        print_fact("queue_timeouts_s", sorted(queue_timeout.seen_timeouts))


def _process(_home: Path) -> dict[str, Any]:
    writable = [path for path in ("/", str(_home), "/tmp") if os.access(path, os.W_OK)]  # noqa: S108
    threads = {name: value for name, value in os.environ.items() if name.endswith("_THREADS")}
    return {"uid": os.getuid(), "gid": os.getgid(), "may_write": writable, "threads": threads, "cpus": os.cpu_count()}


def _interpreter(home: Path) -> dict[str, Any]:
    return {
        "runs": sys.executable,
        "version": ".".join(map(str, sys.version_info[:3])),
        "modules_want": interpreter.read_compiled_version(home),
        "torch": importlib.util.find_spec("torch") is not None,
        "python": shutil.which("python"),
        "python3": shutil.which("python3"),
    }


def _media(_home: Path) -> dict[str, Any]:
    found: dict[str, Any] = {name: shutil.which(name) for name in ("ffmpeg", "ffprobe")}
    if found["ffmpeg"]:
        argv = ["ffmpeg", "-hide_banner", "-filters"]
        listed = subprocess.run(argv, capture_output=True, timeout=60, check=False).stdout
        found["drawtext"] = b" drawtext " in listed
    found["tools"] = next((kind.made.__name__ for kind in media_tools.TOOL_CHOICES if kind.there()), "")
    return found


def _entries(folder: Path) -> list[str]:
    """Return the names in a folder, links with their targets; empty if it is not a folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name + (f" -> {_target(path)}" if path.is_symlink() else "") for path in folder.iterdir())


def _target(link: Path) -> str:
    return os.readlink(str(link))  # noqa: PTH115 - Path.readlink came with Python 3.9


def _their_config(home: Path) -> dict[str, dict[str, str]]:
    read = private_folder.read_vendor_config(home)
    return {section: dict(read[section]) for section in read.sections()}


def _driver_libraries(_home: Path) -> list[str]:
    """Return the paths of NVIDIA driver libraries. At run time they include the host's, mounted by the toolkit."""
    return sorted(str(path) for folder in DRIVER_FOLDERS for name in DRIVER for path in Path(folder).glob(name))


FACTS_BEFORE_LOAD: dict[str, Callable[[Path], Any]] = {
    "process": _process,
    "interpreter": _interpreter,
    "home": lambda home: {"path": str(home), "entries": _entries(home)},
    "service": lambda home: _entries(home / "service"),
    "options_folder": lambda home: _entries(home / "landmark2face_wy" / "checkpoints"),
    "detectors": lambda home: _entries(home / DETECTORS),
    "their_config": _their_config,
    "media": _media,
    "driver_libraries": _driver_libraries,
}


def _signature(name: str) -> str | None:
    """Return the signature of `name` (its type's name if not callable); None if the vendor's module lacks it."""
    found: Any = sys.modules.get(MODULE)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None or not callable(found):
        return None if found is None else type(found).__name__
    try:
        return str(inspect.signature(found))
    except (ValueError, TypeError) as error:  # a compiled function need not have one
        return f"not told: {error}"


def _find_written_files(place: private_folder.WorkFolders) -> list[str]:
    """Return the files that the vendor wrote in the private folder: a few of each folder, and the number of others."""
    folders: dict[Path, list[str]] = collections.defaultdict(list)
    for path in _files(place.root):
        if path.parent != place.inputs and path.name not in OUR_FILES:
            folders[path.parent.relative_to(place.root)].append(path.name)
    lines: list[str] = []
    for folder, names in sorted(folders.items()):
        lines += [str(folder / name) for name in sorted(names)[:FILES_PER_FOLDER_LIMIT]]
        lines += [f"{folder}/ and {len(names) - FILES_PER_FOLDER_LIMIT} more"] * (len(names) > FILES_PER_FOLDER_LIMIT)
    return lines


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(str(folder)):  # does not follow links, so it skips the vendor's code
        yield from (Path(parent, name) for name in names if not Path(parent, name).is_symlink())
