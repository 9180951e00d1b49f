"""Whether this machine has espeak-ng."""

import os
import shutil

import pytest


def require_espeak() -> None:
    """Skip with the reason without espeak-ng; fail under REQUIRE_TTS=1."""
    if shutil.which("espeak-ng"):
        return
    if os.environ.get("REQUIRE_TTS") == "1":
        pytest.fail("REQUIRE_TTS=1, but espeak-ng is not here: install Debian's package", pytrace=False)
    pytest.skip("no espeak-ng: install Debian's package")
