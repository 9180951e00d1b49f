"""`python -m bench [NAME…]`: run all benches, or those named; print a JSON line and a table row for each figure."""

import argparse
import importlib
import logging
import sys

import structlog
import uvloop

from bench.figures import print_figure

BENCHES = (
    "submit",
    "start",
    "assets",
    "waiting",
    "warm",
    "images",
    "pull",
    "volumes",
    "gateway",
    "power",
    "fleet",
    "uploads",
    "replicas",
    "strangers",
    "hosts",
    "many_hosts",
    "console",
    "metrics",
    "observing",
)


async def run(names: list[str]) -> bool:
    """Print the figures of `names` and return whether all targets were met."""
    met = True
    for name in names:
        async for row in importlib.import_module(f"bench.{name}").rows():
            print_figure(row)
            met = met and row.met is not False
    return met


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("names", nargs="*", choices=[[], *BENCHES], help=f"of {', '.join(BENCHES)}; all without")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    asked = parser.parse_args().names or list(BENCHES)
    sys.exit(0 if uvloop.run(run(asked)) else 1)


main()
