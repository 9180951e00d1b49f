"""Tests of the preview engine. Its packages are found as in the container, where they lie beside main.py."""

import sys
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[3] / "images"
sys.path[:0] = [str(IMAGES / "jobkit"), str(IMAGES / "preview")]
