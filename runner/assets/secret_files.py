"""The files of a job's secrets on its host.

The folder `secrets` is beside the job's folder, outside /job, and is deleted with the container's folder. A warm
container is started with an empty one. The files are written before the job starts, and deleted before another job.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from runner.engines.launch import prepare_private_folder
from runner.engines.port import FolderMount

SECRETS_DIR = "secrets"
SECRETS_MOUNT = "/run/secrets"
SECRETS_ENV = "LAMPLIGHTER_SECRETS"  # the folder's path as the job sees it


def secrets_mount(container: Path) -> FolderMount:
    """Make the folder of the secrets of a container, and return it as the container gets it. Blocking."""
    folder = container / SECRETS_DIR
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return FolderMount(source=folder.resolve(), target=SECRETS_MOUNT, variables=(SECRETS_ENV,), is_private=True)


def write_secrets(container: Path, secrets: Mapping[str, str], job_root: Path | None = None) -> None:
    """Write one file for each secret. Blocking; raises OSError.

    `job_root`: what a container that runs already sees as /job, whose user then owns the files. Otherwise the engine
    gives them to the job's user when it starts the container.
    """
    folder = secrets_mount(container).source if job_root is None else container / SECRETS_DIR
    clear_secrets(container)
    for name, value in secrets.items():
        handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(value)
    if job_root is not None:
        user = (job_root / "tmp").stat()
        prepare_private_folder(folder, (user.st_uid, user.st_gid))


def read_secrets(container: Path) -> Mapping[str, str]:
    """Return the secrets of the job that the container has; empty if it has none. Blocking."""
    with suppress(FileNotFoundError):
        return {path.name: path.read_text() for path in (container / SECRETS_DIR).iterdir()}
    return {}


def clear_secrets(container: Path) -> None:
    """Remove the files, and keep the folder. Blocking."""
    with suppress(FileNotFoundError):
        for path in (container / SECRETS_DIR).iterdir():
            path.unlink()
