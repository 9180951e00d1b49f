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

from bus.secret_files import atomic_write

DECISION_FILE = "engine.json"
DOCKER_SOCKET = "/var/run/docker.sock"

EngineName = Literal["docker", "process"]


class EngineDecisionUnreadable(Exception):
    """What was decided cannot be read, and is not guessed: the message says what to do."""


class EngineDecision(Struct, frozen=True):
    """The content of FILE. `why` is for people."""

    engine: EngineName
    why: str
    at: datetime


class EngineChoice(NamedTuple):
    """What holds from now on, and the engine that held before where that was another one."""

    decision: EngineDecision
    previous: EngineName | None = None


def choose_engine(
    data: Path, asked: Literal["auto", "docker", "process"], client: str | None, now: datetime
) -> EngineChoice:
    """Read the decision kept in `data`, or make it and keep it. `client` is what `docker_client` found. Blocking.

    Raises DecisionUnreadable, OSError.
    """
    kept = _read_decision(data / DECISION_FILE)
    if kept is not None and asked in {"auto", kept.engine}:
        return EngineChoice(kept)
    if asked != "auto":
        made = EngineDecision(asked, f"asked for by name: engine = {asked}", now)
    elif client is not None:
        made = EngineDecision("docker", client, now)
    else:
        made = EngineDecision("process", "this machine had no Docker client at the first start", now)
    atomic_write(data / DECISION_FILE, msgspec.json.encode(made))
    return EngineChoice(made, kept.engine if kept else None)


def find_docker(named: str | None, environ: Mapping[str, str]) -> str | None:
    """Why this machine counts as one with Docker, None where it does not. `named`: the setting docker_socket."""
    if named:
        return f"docker_socket names {named}"
    if environ.get("DOCKER_HOST"):
        return f"DOCKER_HOST names {environ['DOCKER_HOST']}"
    if (program := shutil.which("docker", path=environ.get("PATH", os.defpath))) is not None:
        return f"{program} is installed"
    return f"{DOCKER_SOCKET} is there" if Path(DOCKER_SOCKET).exists() else None


def _read_decision(file: Path) -> EngineDecision | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=EngineDecision)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise EngineDecisionUnreadable(
            f"{file}, which says what runs this host's jobs, cannot be read ({error}): "
            "delete it, and start with engine = docker or engine = process"
        ) from error
