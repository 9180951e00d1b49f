"""`lamplighter new` and `lamplighter try`: make the folder of a new image, and run one job of a folder here.

The folder that `new` makes passes `try`. `try` needs neither broker nor edge, and checks the container contract.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import anyio
import click

from bus.secret_files import TRAVERSE_ONLY_MODE
from edge.core.validation import ValidatedInput, validate_input
from lamplighter.cli import display, jobs
from lamplighter.cli.context import FAILED, INTERRUPTED, USAGE
from lamplighter.cli.language import say
from lamplighter.cli.log_output import configure_logging
from lamplighter.cli.process_setup import exit_on_error
from lamplighter.files import hash_file
from runner.assets.container_folders import CacheStore, HostFolders, SecretFiles, open_secret_files
from runner.assets.volume_source import HttpVolumeSource, open_volume_source
from runner.assets.volume_store import VolumeStore
from runner.endpoints import DOCKERFILE, ENDPOINT_FILE, LocalEndpoint, load_endpoints
from runner.engines.selection import JOBKIT_DIR, EngineConfig, EngineUnusable, select_engine
from runner.execution.disk_usage import is_over
from runner.execution.verdict import ClassifiedFailure, Done
from runner.gpu.allocator import MpsSettings, is_memory_shared
from runner.gpu.monitor import AssignmentInvalid, open_gpu_monitor
from runner.gpu.port import GpuMonitor, NoGpuMonitor
from runner.trial.trial import (
    Trial,
    TrialImpossible,
    TrialReport,
    fill_volumes,
    relax_requirements,
    snapshot_folder,
    try_image,
)
from schemas.asset import DIGEST_SCHEME
from schemas.endpoint import EndpointInvalid
from schemas.endpoint_parts import SECRET_LEAST_BYTES, SECRET_LIMIT_BYTES, is_secret_value
from schemas.events import FeedMessage, LogMessage, ProgressMessage
from schemas.lifecycle import MODULE_MISSING_CODE
from schemas.problems import ProblemError

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


WATCH_INTERVAL_S = 0.3
VOLUMES_LIMIT_BYTES = 1 << 62  # the disk is the limit


class BuildFailed(Exception):
    """The image cannot be built; the message says why."""


EXIT_CODES: dict[type[Exception], int] = {
    EndpointInvalid: USAGE,
    EngineUnusable: USAGE,
    TrialImpossible: USAGE,
    BuildFailed: FAILED,
    ProblemError: USAGE,
}


@click.command("try", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Copy the result files there.")
@click.option("--watch", is_flag=True, help="Run again whenever a file of the folder is saved, until Ctrl-C.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "docker", "process"]),
    default="auto",
    help="What runs the job [Docker if this machine has it, else a process].",
)
@click.option("--build/--no-build", default=True, help="Build the image before, if Docker runs the job [--build].")
@click.option(
    "--volume", "volumes", multiple=True, metavar="NAME=FOLDER", help="Use FOLDER as the volume NAME, without a check."
)
@click.option("--stop/--no-stop", default=True, help="Run the job once more and check that it obeys SIGTERM [--stop].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one value on each line.")
@click.argument("inputs", nargs=-1, type=click.UNPROCESSED, metavar="--FIELD VALUE…")
def try_(folder: Path, inputs: tuple[str, ...], *, watch: bool, **options: Any) -> None:
    """Run one job of the image in FOLDER here, and check the container contract. Inputs are --FIELD VALUE."""
    configure_logging("error", "text")
    try:
        while True:
            before = snapshot_folder(folder)
            code = _try_once(folder, inputs, watch=watch, **options)
            if not watch:
                sys.exit(code)
            click.echo(say("waiting for a change; stop with Ctrl-C"), err=True)
            while snapshot_folder(folder) == before:
                time.sleep(WATCH_INTERVAL_S)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _try_once(folder: Path, inputs: tuple[str, ...], *, watch: bool, **options: Any) -> int:
    """Run the job once; return the exit code. With `watch`, bad input returns as well."""
    try:
        with exit_on_error(EXIT_CODES):
            return anyio.run(_try, folder, inputs, options)
    except click.UsageError as error:
        if not watch:
            raise
        click.echo(f"lamplighter: {say(error.message)}", err=True)
        return USAGE
    except SystemExit as exit_:
        if not watch:
            raise
        return int(exit_.code or 0)


async def _try(folder: Path, inputs: tuple[str, ...], options: Mapping[str, Any]) -> int:
    endpoint = _load_endpoint(folder)
    given = _parse_volumes(endpoint, options["volumes"])
    checked, files = await _parse_input(endpoint, inputs)
    secrets = _read_secrets(endpoint, os.environ)
    as_json: bool = options["as_json"]
    with tempfile.TemporaryDirectory(prefix="lamplighter-try-") as scratch:
        jobs_dir = Path(scratch) / "jobs"
        jobs_dir.mkdir()
        for made in (Path(scratch), jobs_dir):
            made.chmod(TRAVERSE_ONLY_MODE)  # the job's user passes through
        engine_name: Literal["auto", "docker", "process"] = options["engine"]
        config = EngineConfig(data=Path(scratch), engine=engine_name, docker_socket=None, job_user=None, slots=1)
        selected = await select_engine(config, [endpoint.folder], datetime.now(UTC))
        if selected.engine.name == "docker" and options["build"] and (endpoint.folder / DOCKERFILE).exists():
            await anyio.to_thread.run_sync(_build_image, endpoint)
        _say_unless(as_json, f"running one job of {endpoint.config.name}: {selected.summary}")
        async with (
            selected.engine,
            _gpu_monitor(endpoint) as gpus,
            open_volume_source(None) as source,
            _open_secret_files(Path(scratch), selected.engine.name) as secret_files,
        ):
            relaxed, unmet = relax_requirements(endpoint, gpus, await selected.engine.probe())
            if unmet is not None:
                _say_unless(as_json, f"warning: a host like this machine would not run its jobs, it lacks {unmet}")
            trial = Trial(
                endpoint=relaxed,
                input=checked.input,
                files=files,
                jobs_dir=jobs_dir,
                secret_files=secret_files,
                checks_stop=options["stop"],
                secrets=secrets,
                folders=_make_folders(Path(scratch), jobs_dir, source, given),
            )
            await fill_volumes(trial, selected.engine, gpus, _volume_printer(as_json=as_json))
            report = await try_image(trial, selected.engine, gpus, _printer(as_json=as_json))
        saved = _save_files(report, options["output"])
    _print_report(endpoint, report, saved, unmet, as_json=as_json)
    return 0 if isinstance(report.verdict, Done) and not report.broken else FAILED


def _load_endpoint(folder: Path) -> LocalEndpoint:
    if not (folder / ENDPOINT_FILE).is_file():
        raise EndpointInvalid(f"there is no {ENDPOINT_FILE} in {folder}: make a folder with `lamplighter new NAME`")
    (endpoint,) = load_endpoints([folder]).values()
    return endpoint


async def _parse_input(endpoint: LocalEndpoint, inputs: tuple[str, ...]) -> tuple[ValidatedInput, dict[str, Path]]:
    """Return the valid input, and its files by digest. Raises UsageError."""
    given = jobs.parse_inputs(endpoint.config.name, inputs, endpoint.config.input)
    files: dict[str, Path] = {}
    for name, value in given.items():
        if isinstance(value, Path):
            digest = hash_file(value)
            files[digest], given[name] = value, f"{DIGEST_SCHEME}{digest}"
    try:
        checked = await validate_input(endpoint.config, given)
    except ProblemError as error:
        faults = "; ".join(f"{fault.path.removeprefix('$.input.')}: {fault.message}" for fault in error.errors)
        raise click.UsageError(f"the input does not fit {ENDPOINT_FILE}: {faults or error.detail}") from error
    missing = [*checked.pending_urls, *(set(checked.digests) - files.keys())]
    if missing:
        raise click.UsageError("a file must be a path on this machine: `try` fetches nothing")
    return checked, files


def _parse_volumes(endpoint: LocalEndpoint, texts: tuple[str, ...]) -> dict[str, Path]:
    """Return the folders that are given for volumes. Raises UsageError."""
    known = [volume.name for volume in endpoint.config.volumes]
    given: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals or name not in known or not Path(folder).is_dir():
            names = ", ".join(known) or "none"
            raise click.UsageError(
                f"--volume {text}: give NAME=FOLDER, the name of a volume in {ENDPOINT_FILE} ({names}) and a folder"
            )
        given[name] = Path(folder).resolve()
    return given


def _make_folders(scratch: Path, jobs_dir: Path, source: HttpVolumeSource, given: Mapping[str, Path]) -> HostFolders:
    """Return the volumes, which outlive the trial in the user's cache folder, and caches, which do not."""
    links = scratch / "given"
    links.mkdir()
    for name, folder in given.items():
        (links / name).symlink_to(folder)  # the engine changes the modes of the folder above, which is ours here
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    store = VolumeStore(user_cache / "lamplighter" / "volumes", jobs_dir, VOLUMES_LIMIT_BYTES, 0)
    return HostFolders(store, source, CacheStore(scratch / "caches", is_over), {name: links / name for name in given})


def _volume_printer(*, as_json: bool) -> Callable[[str, int], None]:
    def print_fill(names: str, percent: int) -> None:
        _say_unless(as_json, f"filling the volume {names}: {percent} %")

    return print_fill


@asynccontextmanager
async def _open_secret_files(scratch: Path, engine: str) -> AsyncIterator[SecretFiles]:
    """Give the files of secrets a place that is in memory where this machine has one, and leave nothing there."""
    is_shared = is_memory_shared(MpsSettings())
    find = partial(open_secret_files, scratch, None, engine, is_memory_shared=is_shared)
    files = await anyio.to_thread.run_sync(find)
    try:
        yield files
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(files.remove_orphans, ())
            await anyio.to_thread.run_sync(files.close)


def _read_secrets(endpoint: LocalEndpoint, environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the secrets that the endpoint names, from the variables of the same names. Raises UsageError."""
    missing = [name for name in endpoint.config.secrets if not environ.get(name)]
    if missing:
        names = ", ".join(missing)
        raise click.UsageError(f"the endpoint needs secrets, which `try` reads from the environment: set {names}")
    if unusable := [name for name in endpoint.config.secrets if not is_secret_value(environ[name])]:
        names, sizes = ", ".join(unusable), f"{SECRET_LEAST_BYTES} to {SECRET_LIMIT_BYTES}"
        raise click.UsageError(f"a secret has {sizes} bytes, as `secrets set` checks: correct the variables {names}")
    return {name: environ[name] for name in endpoint.config.secrets}


def _gpu_monitor(endpoint: LocalEndpoint) -> GpuMonitor:
    if endpoint.config.resources.gpus or endpoint.config.resources.vram_mb:
        try:
            return open_gpu_monitor()
        except AssignmentInvalid as error:
            raise click.UsageError(str(error)) from error
    return NoGpuMonitor()


def _build_image(endpoint: LocalEndpoint) -> None:
    argv = ["docker", "build", "-t", endpoint.config.image, str(endpoint.folder)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=os.environ)
    except OSError as error:
        raise BuildFailed(f"docker cannot be run ({error.strerror}): install it, or give --no-build") from error
    if done.returncode:
        click.echo(display.escape_controls(done.stdout + done.stderr), err=True)
        raise BuildFailed(
            f"{endpoint.config.image} cannot be built from {endpoint.folder}: the lines above say why. "
            "If it is built elsewhere, give --no-build"
        )


def _say_unless(as_json: bool, text: str) -> None:
    if not as_json:
        click.echo(display.escape_controls(say(text)), err=True)


def _printer(*, as_json: bool) -> Any:
    def print_message(message: FeedMessage) -> None:
        if as_json:
            return
        if isinstance(message, ProgressMessage):
            count = f" {message.done}/{message.total}" if message.total is not None else ""
            click.echo(display.escape_controls(f"{message.fraction:4.0%} {message.stage or ''}{count}"), err=True)
        if isinstance(message, LogMessage):
            click.echo(display.escape_controls(message.text), err=True, nl=False)

    return print_message


def _save_files(report: TrialReport, output: Path | None) -> list[tuple[str, int]]:
    """Return name and size of each result file, copied to `output` if it is given."""
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for path in report.output.files:
            shutil.copyfile(path, output / path.name)
    return [(path.name, path.stat().st_size) for path in report.output.files]


def _print_report(
    endpoint: LocalEndpoint, report: TrialReport, files: list[tuple[str, int]], unmet: str | None, *, as_json: bool
) -> None:
    verdict = report.verdict
    error = {"code": verdict.code, "message": verdict.message} if isinstance(verdict, ClassifiedFailure) else None
    if as_json:
        answer = {
            "endpoint": endpoint.config.name,
            "succeeded": isinstance(verdict, Done),
            "error": error,
            "exit_code": report.exit_code,
            "run_s": report.run_s,
            "warm": report.was_warm,
            "stop": report.stop,
            "unmet": unmet,
            "data": report.output.data,
            "files": [{"name": name, "bytes": size} for name, size in files],
            "broken_rules": [{"rule": broken.rule, "message": broken.message} for broken in report.broken],
        }
        sys.stdout.write(display.json_line(answer))
        return
    took = f"{report.run_s:.1f} s" if report.run_s is not None else ""
    if isinstance(verdict, ClassifiedFailure):
        click.echo(display.escape_controls(say(f"the job failed as {verdict.code}: {verdict.message}")))
        if verdict.code == MODULE_MISSING_CODE:
            click.echo(say("install the module where the program runs: in an image, with a line RUN pip install"))
    else:
        click.echo(say(f"the job succeeded in {took}"))
        click.echo(display.json_line(report.output.data), nl=False)
    for name, size in files:
        click.echo(f"{name}  {size} B")
    click.echo(say(f"SIGTERM: {say(report.stop)}"))
    for broken in report.broken:
        click.echo(display.escape_controls(say(f"breaks the rule {broken.rule}: {say(broken.message)}")))
    if not report.broken:
        click.echo(say("no rule of the contract is broken"))
