"""The vendor's working folder, made private: its code by links, its config.ini, its temp and results our own.

The vendor reads config/config.ini and writes temp files relative to its working folder, which in its image is /code:
shared, read-only in a hardened container, and with flat names that two jobs would fight over.
"""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import NamedTuple

from heygem_worker.settings import WorkerSettings

# Paths that the vendor writes to. In the image each is a link to the same path in the job's scratch (Dockerfile).
# landmark2face_wy/checkpoints/test: its option parser writes opt.txt there whenever the model is loaded.
PRIVATE_PATHS = ("cache_trt", "config", "data", "log", "result", "temp", "landmark2face_wy/checkpoints/test")
LEADS_TO_PRIVATE = {str(folder) for name in PRIVATE_PATHS for folder in Path(name).parents}
VENDOR_LINK_NAME = ".vendor"  # what the Dockerfile appends to those it replaced
PORT = 8383  # the vendor's, where its config is not ours to write

# What settings.sharpen writes to [model]. The vendor's defaults are chaofen_before = 1 and blur_threshold = 0.3: it
# sharpens a face whose blur (0 to 1) is above the threshold. It hands chaofen_before on as text, and "0" may count as
# true, so the threshold is put out of reach too.
SHARPEN_SETTINGS: dict[str, dict[str, object]] = {"auto": {}, "never": {"chaofen_before": 0, "blur_threshold": 2.0}}


class WorkFolders(NamedTuple):
    """`home` is the vendor's code, `root` our private copy of its layout, on disk that goes with the job."""

    home: Path
    root: Path

    @property
    def temp(self) -> Path:
        """Where it works: gigabytes, a PNG a frame."""
        return self.root / "data" / "temp"

    @property
    def result(self) -> Path:
        """Where it is told to put the video."""
        return self.root / "data" / "result"

    @property
    def log(self) -> Path:
        """Where its log files are."""
        return self.root / "log"

    @property
    def config(self) -> Path:
        """The config.ini that it reads."""
        return self.root / "config" / "config.ini"

    @property
    def inputs(self) -> Path:
        """Ours; never inside temp, which it sweeps."""
        return self.root / "inputs"

    @property
    def labelled(self) -> Path:
        """The video with our label."""
        return self.root / "labelled.mp4"

    @property
    def frames(self) -> Path:
        """A byte for each frame that its writer was given."""
        return self.root / "frames.count"

    def work_folders(self, code: str) -> list[Path]:
        """Where it makes files for the job `code`, whether or not it honours our config."""
        temps = (self.temp, self.home / "data" / "temp")
        return [folder for temp in temps for folder in (temp, temp / code, temp / code / "avi", temp / code / "png")]

    def result_paths(self, code: str) -> list[Path]:
        """Where the video of the job `code` may come to lie."""
        folders = [base / folder for base in (self.root, self.home) for folder in ("data/result", "data/temp")]
        folders += [base / folder for base in (self.root, self.home) for folder in ("result", "temp", ".")]
        return [folder / (code + "-r.mp4") for folder in folders]


def make_folders(settings: WorkerSettings, root: Path, port: int) -> WorkFolders:
    """Lay out `root` for one job; a server, if one is started, shall listen on `port`."""
    place = WorkFolders(settings.home, root)
    for folder in (*(root / name for name in PRIVATE_PATHS), place.temp, place.result, place.inputs):
        folder.mkdir(parents=True, exist_ok=True)
    _link_code(place, Path())
    _write_config(place, settings, port)
    return place


def _link_code(place: WorkFolders, folder: Path) -> None:
    """Link each entry of the vendor's `folder` (relative) into ours; make a folder that holds a private path."""
    theirs = place.home / folder
    for entry in theirs.iterdir() if theirs.is_dir() else ():
        path = folder / entry.name
        if str(path) in LEADS_TO_PRIVATE:
            _link_code(place, path)
        elif str(path) not in PRIVATE_PATHS and entry.suffix != VENDOR_LINK_NAME:
            (place.root / path).symlink_to(entry)


def _write_config(place: WorkFolders, settings: WorkerSettings, port: int) -> None:
    """The vendor's own file with ours on top: it may have keys that we do not know."""
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
    """The config.ini that the vendor is given."""
    config = _config_parser()
    config.read(str(place.config), encoding="utf-8")
    return config


def read_vendor_config(home: Path) -> configparser.ConfigParser:
    """The config.ini that came with the vendor's code; empty where there is none."""
    config = _config_parser()
    config.read([str(home / name / "config.ini") for name in ("config" + VENDOR_LINK_NAME, "config")], encoding="utf-8")
    return config


def _config_parser() -> configparser.ConfigParser:
    return configparser.ConfigParser(interpolation=None, strict=False)
