"""`just fuzz`: run the fuzz targets for a given time with a new seed, and print the input that breaks one.

    python -m tests.fuzz --minutes 10 [--target envelope] [--seed 7] [--json]

Exits 0 when every input was handled, 1 with the shrunk input and the traceback when one was not.
"""

import argparse
import json
import secrets
import sys
import time

from hypothesis import Verbosity, given, seed

from tests.fuzz.mutations import fuzzing, mutate
from tests.fuzz.targets import BY_NAME, FuzzTarget

ROUND = 1000  # examples of one target before the next one has its turn


def run_round(target: FuzzTarget, number: int) -> None:
    """Check ROUND inputs. Raises what the target raised for the smallest input that breaks it."""

    @seed(number)
    @fuzzing(ROUND, verbosity=Verbosity.normal)
    @given(mutate(target.seeds, target.words))
    def over(data: bytes) -> None:
        target.check(data)

    over()


def main() -> None:
    parser = argparse.ArgumentParser(prog="just fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--target", choices=sorted(BY_NAME), action="append", help="may be repeated; default: all")
    parser.add_argument(
        "--seed", type=int, default=None, help="of the first round; printed, so that a run can be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON at the end")
    asked = parser.parse_args()
    first = secrets.randbelow(2**32) if asked.seed is None else asked.seed
    targets = [BY_NAME[name] for name in asked.target or BY_NAME]
    checked = dict.fromkeys((target.name for target in targets), 0)
    ends, number = time.monotonic() + asked.minutes * 60, first
    while True:
        for target in targets:
            run_round(target, number)
            checked[target.name] += ROUND
            if not asked.json:
                sys.stdout.write(f"fuzz: {target.name:<10} {checked[target.name]:>9} inputs, seed {number}\n")
                sys.stdout.flush()
        number += 1
        if time.monotonic() >= ends:
            break
    if asked.json:
        sys.stdout.write(json.dumps({"seed": first, "inputs": checked}) + "\n")


if __name__ == "__main__":
    main()
