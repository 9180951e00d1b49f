"""Run the tests that failed in the last run once more, alone: `python -m deploy.second_run`.

CI does this with at most LIMIT tests, after a run of all. A test that passes now is unstable: it is listed, and is
to be mended in the next change (docs/decisions/097).
"""

import json
import subprocess
import sys
from pathlib import Path

LIMIT = 5
LAST_FAILED = Path(".pytest_cache/v/cache/lastfailed")


def list_failed(root: Path) -> list[str]:
    """Return the ids of the tests that failed in the last run, as pytest's cache has them."""
    try:
        return sorted(json.loads((root / LAST_FAILED).read_text()))
    except FileNotFoundError:
        return []


def main(root: Path) -> int:
    """Return 0 if something failed, few enough, and all of it passes now."""
    failed = list_failed(root)
    if not failed:
        print("second run: no test failed, so it was something else; see above")
        return 1
    if len(failed) > LIMIT:
        print(f"second run: {len(failed)} tests failed, more than {LIMIT}; none is run again")
        return 1
    if code := subprocess.call([sys.executable, "-m", "pytest", *failed], cwd=root):
        return code
    print("second run: these tests are unstable: they failed beside the others and passed alone:")
    for test in failed:
        print(f"  {test}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path.cwd()))
