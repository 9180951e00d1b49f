"""A private copy of the vendor's working folder: links to its code, and our own config.ini, temp and result folders.

The vendor reads config/config.ini and writes temporary files relative to its working folder, /code in its image. That
folder is shared, and read-only in a hardened container. The vendor's flat file names would collide between two jobs.
"""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import NamedTuple

from heygem_worker.settings import WorkerSettings

# Paths that the vendor writes to. In the image each is a link to the same path in the job's scratch (Dockerfile).
# landmark2face_wy/checkpoints/test: the model's option parser writes opt.txt there on every load.
PRIVATE_PATHS = ("cache_trt", "config", "data", "log", "result", "temp", "landmark2face_wy/checkpoints/test")
LEADS_TO_PRIVATE = {str(folder) for name in PRIVATE_PATHS for folder in Path(name).parents}
VENDOR_LINK_NAME = ".vendor"  # the suffix that the Dockerfile gives to the vendor's folders that it replaced with links
PORT = 8383  # the server's port if it does not read our config

# The values of [model] for each value of settings.sharpen. The vendor's defaults are chaofen_before = 1 and
# blur_threshold = 0.3: it sharpens a face whose blur (0 to 1) is above the threshold. The vendor passes chaofen_before
# on as text, and "0" may count as true. So the threshold is also set to a blur that no face reaches.
SHARPEN_SETTINGS: dict[str, dict[str, object]] = {"auto": {}, "never": {"chaofen_before": 0, "blur_threshold": 2.0}}


class WorkFolders(NamedTuple):
    """The folders of one job. `home` is the vendor's code, `root` our copy of its layout on the job's disk."""

    home: Path
    root: Path

    @property
    def temp(self) -> Path:
        """The folder of the vendor's working files: gigabytes, one PNG for each frame."""
        return self.root / "data" / "temp"

    @property
    def result(self) -> Path:
        """The folder that the config names for the result."""
        return self.root / "data" / "result"

    @property
    def log(self) -> Path:
        """The folder of the vendor's log files."""
        return self.root / "log"

    @property
    def config(self) -> Path:
        """The config.ini that the vendor reads."""
        return self.root / "config" / "config.ini"

    @property
    def inputs(self) -> Path:
        """Our input files. They are not in temp, which the vendor empties."""
        return self.root / "inputs"

    @property
    def labelled(self) -> Path:
        """The file for the result with the operator's label (label.py)."""
        return self.root / "labelled.mp4"

    @property
    def frames(self) -> Path:
        """The file with one byte for each frame that the vendor's writer received (frame_counter.py)."""
        return self.root / "frames.count"

    def work_folders(self, code: str) -> list[Path]:
        """Return the folders where the vendor may make files for the job `code`, even if it ignores our config."""
        temps = (self.temp, self.home / "data" / "temp")
        return [folder for temp in temps for folder in (temp, temp / code, temp / code / "avi", temp / code / "png")]

    def result_paths(self, code: str) -> list[Path]:
        """Return the paths where the video of the job `code` may be."""
        folders = [base / folder for base in (self.root, self.home) for folder in ("data/result", "data/temp")]
        folders += [base / folder for base in (self.root, self.home) for folder in ("result", "temp", ".")]
        return [folder / (code + "-r.mp4") for folder in folders]


def make_folders(settings: WorkerSettings, root: Path, port: int) -> WorkFolders:
    """Create the layout in `root` for one job. A server, if one is started, listens on `port`."""
    place = WorkFolders(settings.home, root)
    for folder in (*(root / name for name in PRIVATE_PATHS), place.temp, place.result, place.inputs):
        folder.mkdir(parents=True, exist_ok=True)
    _link_code(place, Path())
    _write_config(place, settings, port)
    return place


def _link_code(place: WorkFolders, folder: Path) -> None:
    """Link each entry of the vendor's `folder` (relative) into ours; create a folder that contains a private path."""
    theirs = place.home / folder
    for entry in theirs.iterdir() if theirs.is_dir() else ():
        path = folder / entry.name
        if str(path) in LEADS_TO_PRIVATE:
            _link_code(place, path)
        elif str(path) not in PRIVATE_PATHS and entry.suffix != VENDOR_LINK_NAME:
            (place.root / path).symlink_to(entry)


def _write_config(place: WorkFolders, settings: WorkerSettings, port: int) -> None:
    """Write config.ini: the vendor's own file, whose other keys we do not know, with our values set."""
    config = read_vendor_config(place.home)
    ours: dict[str, dict[str, object]] = {
        "log": {"log_dir": place.log, "log_file": "dh.log"},
        "http_server": {"server_ip": "127.0.0.1", "server_port": port},
        "temp": {"temp_dir": place.temp, "clean_switch": 0},
        "result": {"result_dir": place.result, "clean_switch": 0},
        "digital": {"batch_size": settings.batch_size},
        "register": {"enable": 0},
        "model": SHARPEN_SETTINGS[settings.sharpen],
    }
    for section, values in ours.items():
        if values and not config.has_section(section):
            config.add_section(section)
        for key, value in values.items():
            config.set(section, key, str(value))
    with place.config.open("w", encoding="utf-8") as file:
        config.write(file)


def read_config(place: WorkFolders) -> configparser.ConfigParser:
    """Return the config.ini of this job, which the vendor reads."""
    config = _config_parser()
    config.read(str(place.config), encoding="utf-8")
    return config


def read_vendor_config(home: Path) -> configparser.ConfigParser:
    """Return the config.ini that comes with the vendor's code; an empty config if the file does not exist."""
    config = _config_parser()
    config.read([str(home / name / "config.ini") for name in ("config" + VENDOR_LINK_NAME, "config")], encoding="utf-8")
    return config


def _config_parser() -> configparser.ConfigParser:
    return configparser.ConfigParser(interpolation=None, strict=False)
