"""Check the vendor's own marks, `watermark` and `digital_auth`, whose pictures its image may lack.

The vendor reads their paths from its config.ini and ignores the exit code of its ffmpeg. So a job that asks for a mark
whose picture is missing would end without a video, after all the work.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from heygem_worker import private_folder
from jobkit import BadInput

PICTURES = {  # the job's switch -> section and key of config.ini
    "watermark": ("watermark", "watermark_path"),
    "digital_auth": ("digital_human_authentication", "digital_auth_path"),
}


def find_picture(switch: str, place: private_folder.WorkFolders) -> Path | None:
    """Return the picture of the mark `switch`; None if it is not configured or does not exist."""
    path = private_folder.read_config(place).get(*PICTURES[switch], fallback="")
    found = place.root / path
    return found if path and found.is_file() else None


def check(switches: Mapping[str, int], place: private_folder.WorkFolders) -> None:
    """Raise BadInput if the job asks for a mark whose picture this installation does not have."""
    for switch, (section, key) in PICTURES.items():
        if switches[switch] and find_picture(switch, place) is None:
            where = f"[{section}] {key} in HeyGem's config.ini names no file that is there"
            raise BadInput("bad_input", f"{switch} cannot be had: {where}: leave it out, or see README.md, Labels")
