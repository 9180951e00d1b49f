"""`python -m tests.runner.alone`: a runner process without the command line, for tests that kill it."""

import os
from functools import partial

import anyio

from runner.app import serve
from runner.settings import RunnerSettings
from schemas.settings import load

if __name__ == "__main__":
    anyio.run(partial(serve, load(RunnerSettings, "", os.environ), say=print))
