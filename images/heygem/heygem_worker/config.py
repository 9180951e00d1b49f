"""The vendor's working folder, made private: its code by links, its config.ini, its temp and results our own.

The vendor reads config/config.ini and writes temp files relative to its working folder, which in its image is /code:
shared, read-only in a hardened container, and with flat names that two jobs would fight over.
"""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import NamedTuple

from heygem_worker.settings import Settings

PRIVATE = ("config", "data", "log", "result", "temp")  # in the image, links to here (Dockerfile)
KEPT = ".vendor"  # what the Dockerfile appends to those it replaced
PORT = 8383  # the vendor's, where its config is not ours to write


class Place(NamedTuple):
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
    def inputs(self) -> Path:
        """Ours; never inside temp, which it sweeps."""
        return self.root / "inputs"

    @property
    def frames(self) -> Path:
        """A byte for each frame that its writer was given."""
        return self.root / "frames.count"

    def works_in(self, code: str) -> list[Path]:
        """Where it makes files for the job `code`, whether or not it honours our config."""
        temps = (self.temp, self.home / "data" / "temp")
        return [folder for temp in temps for folder in (temp, temp / code, temp / code / "avi", temp / code / "png")]

    def results_of(self, code: str) -> list[Path]:
        """Where the video of the job `code` may come to lie."""
        folders = [base / folder for base in (self.root, self.home) for folder in ("data/result", "data/temp")]
        folders += [base / folder for base in (self.root, self.home) for folder in ("result", "temp", ".")]
        return [folder / (code + "-r.mp4") for folder in folders]


def make(settings: Settings, root: Path, port: int) -> Place:
    """Lay out `root` for one job; a server, if one is started, shall listen on `port`."""
    place = Place(settings.home, root)
    for name in PRIVATE:
        (root / name).mkdir(parents=True, exist_ok=True)
    for folder in (place.temp, place.result, place.inputs):
        folder.mkdir(parents=True, exist_ok=True)
    for entry in settings.home.iterdir() if settings.home.is_dir() else ():
        if entry.name not in PRIVATE and entry.suffix != KEPT:
            (root / entry.name).symlink_to(entry)
    _write_config(place, settings, port)
    return place


def _write_config(place: Place, settings: Settings, port: int) -> None:
    """The vendor's own file with ours on top: it may have keys that we do not know."""
    config = configparser.ConfigParser(interpolation=None, strict=False)
    originals = (place.home / ("config" + KEPT), place.home / "config")
    config.read([str(folder / "config.ini") for folder in originals], encoding="utf-8")
    ours: dict[str, dict[str, object]] = {
        "log": {"log_dir": place.log, "log_file": "dh.log"},
        "http_server": {"server_ip": "127.0.0.1", "server_port": port},
        "temp": {"temp_dir": place.temp, "clean_switch": 0},
        "result": {"result_dir": place.result, "clean_switch": 0},
        "digital": {"batch_size": settings.batch_size},
        "register": {"enable": 0},
    }
    for section, values in ours.items():
        if not config.has_section(section):
            config.add_section(section)
        for key, value in values.items():
            config.set(section, key, str(value))
    with (place.root / "config" / "config.ini").open("w", encoding="utf-8") as file:
        config.write(file)
