"""Keep app_local.py and its children out of the vendor's folder. Python imports this module at the start of each.

http_vendor.py puts this folder on their PYTHONPATH. app_local.py changes to /code in its first lines, and each of its
children does so too when it imports app_local.py again. In /code it would read a config.ini that is not ours and write
next to the vendor's code. So `os.chdir` goes to the job's private folder instead.
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
if os.environ.pop("HEYGEM_SERVER", None):  # only in the server itself: its children inherit the environment without it
    from heygem_worker import queue_timeout

    queue_timeout.lengthen_queue_timeout()
