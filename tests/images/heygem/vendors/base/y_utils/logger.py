"""Plays the logger of Gen-1: each line to stderr with milliseconds, and to a file without."""

import logging
from logging.handlers import WatchedFileHandler
from pathlib import Path

from y_utils.config import GlobalConfig

FORMAT = "[%(asctime)s] [%(filename)s[line:%(lineno)d]] [%(levelname)s] [%(message)s]"


def _handlers():
    config = GlobalConfig()
    Path(config.log_dir).mkdir(parents=True, exist_ok=True)
    stream = logging.StreamHandler()
    stream.setFormatter(logging.Formatter(FORMAT))
    file = WatchedFileHandler(Path(config.log_dir, config.log_file), encoding="utf-8")
    file.setFormatter(logging.Formatter(FORMAT, datefmt="%Y-%m-%d %H:%M:%S"))
    return [stream, file]


logger = logging.getLogger("played")
logger.setLevel(logging.INFO)
logger.propagate = False
logger.handlers[:] = _handlers()
