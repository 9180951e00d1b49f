"""Plays the option parser, which writes the options to a file below the working folder each time a model is loaded."""

from pathlib import Path

FOLDER = Path("./landmark2face_wy/checkpoints/test")


def parse():
    if not FOLDER.exists():
        FOLDER.mkdir(parents=True)
    with (FOLDER / "opt.txt").open("w") as file:
        file.write("----------------- Options ---------------\n")
