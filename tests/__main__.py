"""`./justw test`: the quick tests; with `all` every test; with a path, `-k` or `-m` just what pytest makes of it."""

import os
import sys
from pathlib import Path

from tests.support.bytecode import enable_bytecode_cache

CHOOSES = ("-k", "-m", "--lf", "--ff")  # options that say which tests; a path does too
SLOWEST = 10


def workers(cores: int) -> int:
    """How many tests run at once. Most of a test is waiting, so there are more than cores."""
    return min(max(4, 5 * cores // 2), 16)


def pytest_words(words: list[str], cores: int) -> list[str]:
    """What pytest is called with."""
    everything = words[:1] == ["all"]
    parallel = ["-n", str(workers(cores)), "--dist", "loadfile", f"--durations={SLOWEST}"]
    if everything:
        return [*parallel, *words[1:]]
    if any(word.startswith(CHOOSES) or Path(word.partition("::")[0]).exists() for word in words):
        return words
    return [*parallel, "-m", "not long", *words]


if __name__ == "__main__":
    enable_bytecode_cache()  # pytest's plugins are compiled too, before tests/conftest.py is read
    given = pytest_words(sys.argv[1:], os.cpu_count() or 1)
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *given])
