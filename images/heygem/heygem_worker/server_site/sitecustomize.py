"""Runs first in the Python of app_local.py and in each that it starts: http.py puts this folder on its PYTHONPATH.

app_local.py changes to /code on its first lines, and so does each of its children, which import it again. There it
would read a config.ini that is not ours and write beside the vendor's code. So this sends it to the job's private
folder instead.
"""

from __future__ import annotations

import os
from typing import Any

_NOT_IN, _BUT_IN = os.environ["HEYGEM_NOT_IN"], os.environ["HEYGEM_BUT_IN"]
_chdir = os.chdir


def _private_chdir(path: Any) -> None:
    """Do as os.chdir does, but go to the private folder instead of the vendor's."""
    vendors = not isinstance(path, int) and os.path.realpath(path) == os.path.realpath(_NOT_IN)
    _chdir(_BUT_IN if vendors else path)


os.chdir = _private_chdir
if os.environ.pop("HEYGEM_SERVER", None):  # the server itself: its children inherit an environment without it
    from heygem_worker import queue_timeout

    queue_timeout.lengthen_queue_timeout()
