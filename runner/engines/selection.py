"""Selection of the engine that runs the jobs of a data folder: decided once, at its first start, and kept there.

With `auto`, the first start chooses Docker if the machine has a Docker client or an engine was configured, else the
process engine. Whether Docker answers at that moment does not matter: it may be starting too. An engine with less
isolation never replaces it. A setting that names an engine wins, and is kept.
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
    """The kept decision cannot be read, and is not guessed; the message says what to do."""


class EngineDecision(Struct, frozen=True):
    """Content of DECISION_FILE. `why` is for people."""

    engine: EngineName
    why: str
    at: datetime


class EngineChoice(NamedTuple):
    """The decision from now on, and the previous engine if it was a different one."""

    decision: EngineDecision
    previous: EngineName | None = None


def choose_engine(
    data: Path, configured: Literal["auto", "docker", "process"], docker_found: str | None, now: datetime
) -> EngineChoice:
    """Read the decision kept in `data`, or make it and keep it. Blocking.

    `docker_found` is the result of `find_docker`. Raises EngineDecisionUnreadable, OSError.
    """
    kept = _read_decision(data / DECISION_FILE)
    if kept is not None and configured in {"auto", kept.engine}:
        return EngineChoice(kept)
    if configured != "auto":
        decision = EngineDecision(configured, f"asked for by name: engine = {configured}", now)
    elif docker_found is not None:
        decision = EngineDecision("docker", docker_found, now)
    else:
        decision = EngineDecision("process", "this machine had no Docker client at the first start", now)
    atomic_write(data / DECISION_FILE, msgspec.json.encode(decision))
    return EngineChoice(decision, kept.engine if kept else None)


def find_docker(named: str | None, environ: Mapping[str, str]) -> str | None:
    """Return why this machine counts as one with Docker; None if it does not. `named` is the setting docker_socket."""
    if named:
        return f"docker_socket names {named}"
    if environ.get("DOCKER_HOST"):
        return f"DOCKER_HOST names {environ['DOCKER_HOST']}"
    if (program := shutil.which("docker", path=environ.get("PATH", os.defpath))) is not None:
        return f"{program} is installed"
    return f"{DOCKER_SOCKET} exists" if Path(DOCKER_SOCKET).exists() else None


def _read_decision(file: Path) -> EngineDecision | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=EngineDecision)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise EngineDecisionUnreadable(
            f"{file}, which records the engine of this host, cannot be read ({error}): "
            "delete it, and start with engine = docker or engine = process"
        ) from error
