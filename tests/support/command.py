"""An installation that is nothing but a broker and the settings that name it, and the commands on it."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import anyio.to_thread

from bus.settings import BrokerSettings
from tests.support.installation import ROOT


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
