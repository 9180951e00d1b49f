"""The command line of the long runs."""

import argparse
import logging
import time

import click
import structlog
from msgspec import Struct


class RunOptions(Struct, frozen=True):
    """How long to run, and from which seed."""

    minutes: float
    seed: int

    @property
    def seconds(self) -> float:
        return self.minutes * 60


def parse_run_options(name: str, what: str, minutes: float) -> RunOptions:
    """Read and print `--minutes` (default `minutes`) and `--seed` (default a new one); silence our own logs."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = RunOptions(**vars(parser.parse_args()))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    click.echo(f"{name}: seed {given.seed}, {given.minutes:g} minutes")
    return given
