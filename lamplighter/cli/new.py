"""`lamplighter new`: make the folder of a new image, which passes `lamplighter try`."""

import re
import shutil
from pathlib import Path

import click

from lamplighter.cli.language import say
from runner.engines.selection import JOBKIT_DIR

NAME_PATTERN = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*")  # a Docker image and an endpoint may both have this name
NAME_LIMIT_CHARS = 40
PLACEHOLDER = "NAME"


@click.command()
@click.argument("name")
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), help="Where to make it [a folder of that name]."
)
def new(name: str, folder: Path | None) -> None:
    """Make a folder with a new image: program, endpoint.toml, Dockerfile, README."""
    if not NAME_PATTERN.fullmatch(name) or len(name) > NAME_LIMIT_CHARS:
        raise click.UsageError(
            f"{name!r} cannot be the name of an image: use at most 40 of a-z and 0-9, with - or _ between them"
        )
    target = folder or Path(name)
    if target.exists() and any(target.iterdir()):
        raise click.UsageError(f"{target} is not empty: choose another name, or another folder with --folder")
    make_image_folder(name, target)
    click.echo(say(f"made {target}. Next: lamplighter try {target}"))


def make_image_folder(name: str, target: Path) -> None:
    """Write the template and jobkit into the folder `target`. Raises OSError."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted((JOBKIT_DIR / "template").iterdir()):
        if path.is_file():
            (target / path.name).write_text(path.read_text(encoding="utf-8").replace(PLACEHOLDER, name), "utf-8")
    shutil.copytree(JOBKIT_DIR / "jobkit", target / "jobkit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(JOBKIT_DIR / "README.md", target / "jobkit" / "README.md")
