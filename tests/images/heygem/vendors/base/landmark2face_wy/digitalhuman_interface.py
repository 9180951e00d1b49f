"""Plays the model: all that is written while it loads, below the working folder and into the caches of libraries."""

import os
from pathlib import Path

from landmark2face_wy.options import base_options

CACHES = ("NUMBA_CACHE_DIR", "MPLCONFIGDIR", "CUDA_CACHE_PATH", "XDG_CACHE_HOME", "TORCH_EXTENSIONS_DIR")


def load():
    base_options.parse()
    Path("./cache_trt").mkdir(parents=True, exist_ok=True)
    Path("./cache_trt/played.engine").write_text("TensorRT's provider only")
    for folder in [os.environ[name] for name in CACHES if name in os.environ]:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "played").write_text("compiled")
    Path(os.environ.get("HOME", "data"), "played").write_text("a library's own idea of where to write")
