"""Which engine runs the jobs of a data folder: decided once, at its first start, and kept there.

With `auto` that first start takes Docker where the machine has a Docker client or was told where an engine is, and the
process engine elsewhere. Whether Docker answers just then decides nothing: it may be starting, as this runner is. An
engine that isolates less never takes its place. A setting that names an engine wins, and is kept.
"""

import os
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from bus.private import write_private

FILE = "engine.json"
SOCKET = "/var/run/docker.sock"

Name = Literal["docker", "process"]


class DecisionUnreadable(Exception):
    """What was decided cannot be read, and is not guessed: the message says what to do."""


class Decision(Struct, frozen=True):
    """The content of FILE. `why` is for people."""

    engine: Name
    why: str
    at: datetime


class Choice(NamedTuple):
    """What holds from now on, and the engine that held before where that was another one."""

    decision: Decision
    before: Name | None = None


def choose(data: Path, asked: Literal["auto", "docker", "process"], client: str | None, now: datetime) -> Choice:
    """Read the decision kept in `data`, or make it and keep it. `client` is what `docker_client` found. Blocking.

    Raises DecisionUnreadable, OSError.
    """
    kept = _kept(data / FILE)
    if kept is not None and asked in {"auto", kept.engine}:
        return Choice(kept)
    if asked != "auto":
        made = Decision(asked, f"asked for by name: engine = {asked}", now)
    elif client is not None:
        made = Decision("docker", client, now)
    else:
        made = Decision("process", "this machine had no Docker client at the first start", now)
    write_private(data / FILE, msgspec.json.encode(made))
    return Choice(made, kept.engine if kept else None)


def docker_client(named: str | None, environ: Mapping[str, str]) -> str | None:
    """Why this machine counts as one with Docker, None where it does not. `named`: the setting docker_socket."""
    if named:
        return f"docker_socket names {named}"
    if environ.get("DOCKER_HOST"):
        return f"DOCKER_HOST names {environ['DOCKER_HOST']}"
    if (program := shutil.which("docker", path=environ.get("PATH", os.defpath))) is not None:
        return f"{program} is installed"
    return f"{SOCKET} is there" if Path(SOCKET).exists() else None


def _kept(file: Path) -> Decision | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Decision)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise DecisionUnreadable(
            f"{file}, which says what runs this host's jobs, cannot be read ({error}): "
            "delete it, and start with engine = docker or engine = process"
        ) from error
