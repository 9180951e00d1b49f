"""`python -m tests.runner.runner_main`: a runner process without the command line, for tests that kill it."""

import os
from functools import partial

import anyio

from runner.app import serve
from runner.settings import RunnerSettings
from schemas.settings_loader import load_settings

if __name__ == "__main__":
    anyio.run(partial(serve, load_settings(RunnerSettings, "", os.environ), say=print))
