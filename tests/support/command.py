"""Commands of `lamplighter`, the settings of a broker that they need, and the runner of a joined host."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import anyio.to_thread

from bus.settings import BrokerSettings
from tests.support.installation import ROOT

JOINED_RUNNER_STOP_TIMEOUT_S = 60.0


def write_settings(folder: Path, settings: BrokerSettings) -> Path:
    """The settings file of an edge in `folder`."""
    folder.mkdir(exist_ok=True)
    config = folder / "lamplighter.toml"
    lines = [f'{name} = "{getattr(settings, name)}"' for name in ("url", "user", "password", "monitor")]
    if settings.replicas is not None:
        lines.append(f"replicas = {settings.replicas}")
    store = f'data = "{folder / "edge"}"\n[store]\nurl = "{(folder / "assets").as_uri()}"\n[broker]\n'
    config.write_text(store + "\n".join(lines))
    return config


async def run_lamplighter(*words: object) -> subprocess.CompletedProcess[str]:
    """`lamplighter` with these words, to its end."""
    argv = [sys.executable, "-m", "lamplighter", *map(str, words)]
    return await anyio.to_thread.run_sync(
        partial(subprocess.run, argv, capture_output=True, text=True, check=False, cwd=ROOT)
    )


@contextmanager
def joined_runner(
    data: Path, *more: str, tree: Path = ROOT, prefix: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Run the runner of the release in `tree`, with its data in `data`; it is stopped when the block ends."""
    environ = {
        "LAMPLIGHTER_CONFIG": os.devnull,
        "LAMPLIGHTER_DATA": str(data),
        "LAMPLIGHTER_ENDPOINTS": json.dumps([str(tree / "images" / "echo")]),
        "LAMPLIGHTER_ENGINE": "process",
        "LAMPLIGHTER_WARM__ON": "0",
        "LAMPLIGHTER_GRACE_S": "1",
    }
    argv = [*prefix, sys.executable, "-m", "lamplighter", "runner", *more]
    with subprocess.Popen(
        argv, env=os.environ | environ, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=tree
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            with suppress(ValueError):  # the test has read its output to the end
                process.communicate(timeout=JOINED_RUNNER_STOP_TIMEOUT_S)
