"""`images/heygem/selfcheck BASE`: what is assumed of the vendor's image, against the image itself, and one job in it.

Builds our layer on BASE, starts a container with the runner's own engine (read-only root, not root, no network, no
capabilities, the limits of endpoint.toml, one GPU where there is one) whose program is survey.py instead of main.py,
and reads the facts that it tells.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.port import ContainerIdentity, ContainerLimits, ContainerSpec, EngineError
from runner.host.watches import LIST_GPUS_COMMAND
from schemas import endpoint
from schemas.container_protocol import JOB_FILE, OUTPUT_FILE, ErrorLine, JobFile, JobTimeouts, LineParser, ProgressLine

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "images"
TAG = "lamplighter-heygem-selfcheck"
SURVEY_COMMAND = ("sh", "-c", 'exec "$(command -v python || command -v python3)" survey.py')
FACT_PREFIX = "fact: "  # begins each line that heygem_worker/vendor_survey.py prints
PRIVATE = "/job/tmp/heygem"
OPTIONS = "landmark2face_wy/checkpoints/test"
SCRATCH = "/tmp"  # noqa: S108 - inside the container, which has its own tmpfs there
TAIL_LINES = 40  # last lines of a failed job's log that are shown
OK, BAD, CANNOT = 0, 1, 2


class CannotCheck(Exception):
    """The image could not be checked; the message says why and what to do."""


@dataclass(frozen=True)
class SelfcheckRun:
    """The results of one job in the image: facts, exit code, failure, stages, output data and log."""

    facts: dict[str, Any] = field(default_factory=dict)
    code: int | None = None
    failure: str = ""
    stages: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)
    log: str = ""
    seconds: float = 0.0
    gpus: int = 0


@dataclass(frozen=True)
class Assumption:
    """One assumption about the image. `judge` returns the finding and whether it is as assumed.

    It returns None instead of a verdict where the finding is only reported.
    """

    name: str
    assumed: str
    judge: Callable[[SelfcheckRun], tuple[Any, bool | None]]


def _judge_fact(
    name: str, judge: Callable[[Any], bool | None] = lambda _: None
) -> Callable[[SelfcheckRun], tuple[Any, bool | None]]:
    """Return a judge of one fact. The fact is missing if the job failed before it could be printed."""

    def judged(ran: SelfcheckRun) -> tuple[Any, bool | None]:
        if name not in ran.facts:
            return "not told: see why the job failed", False
        return ran.facts[name], judge(ran.facts[name])

    return judged


def _contains(*entries: str) -> Callable[[Any], bool]:
    return lambda found: {*entries} <= {*(found["entries"] if isinstance(found, dict) else found)}


def _judge_job(ran: SelfcheckRun) -> tuple[Any, bool | None]:
    return ran.failure or ran.data or f"exit code {ran.code}", ran.code == 0


def _judge_frame_counter(ran: SelfcheckRun) -> tuple[Any, bool | None]:
    """Judge the number of counted frames. Only Gen-1 has a frame writer that can be wrapped."""
    found = ran.facts.get("frames_counted")
    return found, bool(found) if ran.facts.get("engine") == "gen1" else None


def _judge_driver_libraries(ran: SelfcheckRun) -> tuple[Any, bool | None]:
    """Judge the driver libraries. With a GPU, the container toolkit mounts the host's; without, there must be none."""
    found = ran.facts.get("driver_libraries", [])
    return found, None if ran.gpus else not found


LINKS = [f"{name} -> {PRIVATE}/{name}" for name in ("config", "data", "log", "result", "temp")]
ASSUMPTIONS = (
    Assumption(
        "process",
        "not root, and may write to /tmp alone",
        _judge_fact("process", lambda it: it["may_write"] == [SCRATCH]),
    ),
    Assumption(
        "interpreter",
        "the Python that the modules are compiled for, with torch",
        _judge_fact("interpreter", lambda it: it["torch"] and it["version"].startswith(it["modules_want"] or "3.")),
    ),
    Assumption(
        "home", "what it writes beside its code leads to the job's scratch", _judge_fact("home", _contains(*LINKS))
    ),
    Assumption(
        "options_folder",
        "so does its options file",
        _judge_fact("options_folder", _contains(f"test -> {PRIVATE}/{OPTIONS}")),
    ),
    Assumption(
        "service", "service/trans_dh_service is there", _judge_fact("service", lambda it: "trans_dh" in " ".join(it))
    ),
    Assumption("detectors", "which face detectors there are", _judge_fact("detectors")),
    Assumption("their_config", "what its own config.ini says", _judge_fact("their_config")),
    Assumption("media", "ffmpeg and ffprobe, or PyAV", _judge_fact("media", lambda it: bool(it["tools"]))),
    Assumption("driver_libraries", "none but the host's", _judge_driver_libraries),
    Assumption("load_s", "below HEYGEM_LOAD_S", _judge_fact("load_s")),
    Assumption(
        "engine", "a generation of its module that is known", _judge_fact("engine", lambda it: it in {"gen1", "gen2"})
    ),
    Assumption("ready_lines", "were said", _judge_fact("ready_lines")),
    Assumption("functions", "how the module is called", _judge_fact("functions")),
    Assumption("marks", "pictures for watermark and digital_auth", _judge_fact("marks")),
    Assumption("written_by_load", "its options file", _judge_fact("written_by_load", _contains(f"{OPTIONS}/opt.txt"))),
    Assumption("written_by_job", "what the job left in its scratch", _judge_fact("written_by_job")),
    Assumption("frames_counted", "the writer of Gen-1 is replaced by ours", _judge_frame_counter),
    Assumption("queue_timeouts_s", "10 s for the face detection, which is stretched", _judge_fact("queue_timeouts_s")),
    Assumption("job", "one job ends with a video as long as its speech", _judge_job),
)


def build(base: str, detector: str, docker: Sequence[str] = ("docker",)) -> str:
    """Build our layer on `base`, and return the name of the image. Raises CannotCheck."""
    argv = [*docker, "build", "--quiet", "--build-arg", f"BASE={base}", "--build-arg", f"DETECTOR={detector}"]
    dockerfile = IMAGES / "heygem" / "Dockerfile"
    try:
        done = subprocess.run(
            [*argv, "--file", str(dockerfile), "--tag", TAG, str(IMAGES)], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise CannotCheck(f"docker cannot be run: {error}: install Docker's command line") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise CannotCheck(f"our layer cannot be built on {base}: {said[-600:]}: is the image here, and the engine up?")
    return TAG


def samples(folder: Path) -> tuple[Path, Path]:
    """Fetch a face and a voice as the demo does, and return their paths. Raises CannotCheck."""
    done = subprocess.run([sys.executable, str(IMAGES / "preview" / "samples.py"), str(folder)], check=False)
    if done.returncode:
        raise CannotCheck("no sample face and voice could be fetched: give your own with --video and --audio")
    return folder / "face.mp4", folder / "speech2.wav"


def list_gpus() -> tuple[str, ...]:
    """Return the UUIDs of the host's GPUs; empty without a driver."""
    if shutil.which(LIST_GPUS_COMMAND[0]) is None:
        return ()
    done = subprocess.run(LIST_GPUS_COMMAND, capture_output=True, text=True, check=False)
    return tuple(done.stdout.split()) if done.returncode == 0 else ()


def make_spec(image: str, work: Path, video: Path, audio: Path, gpus: tuple[str, ...]) -> ContainerSpec:
    """Return the container as the runner would start it for a job, except for its program."""
    heygem = endpoint.parse_endpoint((IMAGES / "heygem" / "endpoint.toml").read_text())
    names = {"video": f"video{video.suffix}", "audio": f"audio{audio.suffix}"}
    (work / "in").mkdir(parents=True)
    for name, source in (("video", video), ("audio", audio)):
        try:
            shutil.copyfile(source, work / "in" / names[name])
        except OSError as error:
            raise CannotCheck(f"the {name} cannot be read: {error}") from error
    timeouts = JobTimeouts(heygem.timeouts.base_s, heygem.timeouts.stall_s)
    job = JobFile(id="selfcheck", owner="me", endpoint="heygem", round=1, attempt=1, input=names, timeouts=timeouts)
    (work / JOB_FILE).write_bytes(msgspec.json.encode(job))
    needs = heygem.resources
    return ContainerSpec(
        identity=ContainerIdentity(
            installation="selfcheck", host="selfcheck", owner="me", job="selfcheck", round=1, attempt=1
        ),
        image=image,
        entrypoint_override=SURVEY_COMMAND,
        job_dir=work,
        limits=ContainerLimits(memory_mb=needs.memory_mb, cpus=needs.cpus, shm_mb=needs.shm_mb),
        gpus=gpus[: needs.gpus],
    )


async def run(url: str, spec: ContainerSpec) -> SelfcheckRun:
    """Run the job with the Docker engine at `url`. Raises CannotCheck."""
    try:
        async with DockerEngine(DockerSettings(base_url=url)) as engine:
            if spec.gpus:
                await choose_injection(engine, spec)
            return await follow(engine, spec)
    except EngineError as error:
        raise CannotCheck(f"the container could not be run: {error}") from error


async def choose_injection(engine: DockerEngine, spec: ContainerSpec) -> None:
    """Choose the first method of passing GPUs to a container that works, as the runner does."""
    for method in engine.injection_modes:
        engine.set_injection(method)
        try:
            if (await follow(engine, replace_program(spec))).code == 0:
                return
        except EngineError as error:
            print(f"selfcheck: {method}: {error}", file=sys.stderr)
    raise CannotCheck("containers do not get the GPU: install the NVIDIA container toolkit")


def replace_program(spec: ContainerSpec) -> ContainerSpec:
    """Return the same container with a program that only lists its GPUs."""
    return msgspec.structs.replace(spec, entrypoint_override=tuple(LIST_GPUS_COMMAND))


async def follow(engine: DockerEngine, spec: ContainerSpec) -> SelfcheckRun:
    """Run one container to its end, collect its results, and remove it."""
    began, ran, log = time.monotonic(), SelfcheckRun(), b""
    parser = LineParser("stdout")
    handle = await engine.start(spec)
    try:
        async with aclosing(engine.output(handle, None)) as chunks:
            async for chunk in chunks:
                if chunk.stream == "stderr":
                    log += chunk.data
                    continue
                for found in parser.feed(chunk.data, chunk.cursor.offset - len(chunk.data)):
                    ran = add_message(ran, found.message)
        code = (await engine.wait(handle)).code
    finally:
        await engine.remove(handle)
    text = log.decode(errors="replace")
    output = spec.job_dir / "out" / OUTPUT_FILE
    data = json.loads(output.read_text()) if output.is_file() else {}
    took = round(time.monotonic() - began, 1)
    return replace(ran, facts=parse_facts(text), code=code, data=data, log=text, seconds=took, gpus=len(spec.gpus))


def add_message(ran: SelfcheckRun, message: object) -> SelfcheckRun:
    """Return `ran` with one more message of the job added."""
    if isinstance(message, ErrorLine):
        return replace(ran, failure=f"{message.code}: {message.message}")
    if isinstance(message, ProgressLine) and message.stage and message.stage not in ran.stages:
        return replace(ran, stages=(*ran.stages, message.stage))
    return ran


def parse_facts(log: str) -> dict[str, Any]:
    """Return the facts that survey.py printed. The last one with a name wins."""
    facts = {}
    for line in log.splitlines():
        if line.startswith(FACT_PREFIX):
            try:
                fact = json.loads(line.removeprefix(FACT_PREFIX))
                facts[fact["name"]] = fact["found"]
            except (ValueError, KeyError):  # another process wrote into the middle of the line
                continue
    return facts


def judge_assumptions(ran: SelfcheckRun) -> list[dict[str, Any]]:
    """Return each assumption with the finding and a verdict: `yes`, `no`, or `told` if it is only reported."""
    words = {True: "yes", False: "no", None: "told"}
    judged = [(row, *row.judge(ran)) for row in ASSUMPTIONS]
    return [
        {
            "name": row.name,
            "assumed": row.assumed,
            "found": found,
            "as_assumed": words[None if as_it is None else bool(as_it)],
        }
        for row, found, as_it in judged
    ]


def report(base: str, ran: SelfcheckRun) -> dict[str, Any]:
    """Return the whole report, as --json prints it."""
    rows = judge_assumptions(ran)
    job = {
        "exit_code": ran.code,
        "failure": ran.failure,
        "data": ran.data,
        "stages": ran.stages,
        "seconds": ran.seconds,
    }
    tail = [line for line in ran.log.splitlines() if not line.startswith(FACT_PREFIX)][-TAIL_LINES:] if ran.code else []
    return {"base": base, "ok": all(row["as_assumed"] != "no" for row in rows), "rows": rows, "job": job, "log": tail}


def format_report(said: dict[str, Any]) -> str:
    """Return the report as text for a terminal."""
    lines = [f"{said['base']}:"]
    for row in said["rows"]:
        lines.append(f"  [{row['as_assumed']:4}] {row['name']}: {row['assumed']}")
        lines += [f"         {line}" for line in _format_found(row["found"])]
    lines += [f"  stages of the job: {', '.join(said['job']['stages'])}; {said['job']['seconds']} s in all"]
    lines += ["  the end of its log:", *(f"    {line}" for line in said["log"])] if said["log"] else []
    return "\n".join([*lines, "all is as assumed" if said["ok"] else "not all is as assumed: see the rows with [no]"])


def _format_found(found: Any) -> list[str]:
    if isinstance(found, dict):
        return [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in found.items()] or ["nothing"]
    if isinstance(found, list):
        return [str(one) for one in found] or ["nothing"]
    return [str(found)]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="selfcheck", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", help="the vendor's image, for instance guiji2025/duix.avatar")
    parser.add_argument("--video", type=Path, help="a video of a face; with --audio, else samples are fetched")
    parser.add_argument("--audio", type=Path, help="speech")
    parser.add_argument("--detector", default="", help="build argument DETECTOR, see README.md")
    parser.add_argument("-o", "--output", type=Path, help="keep the video here")
    parser.add_argument("--json", action="store_true", help="print all that was found as JSON")
    return parser.parse_args(argv)


def check(asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Build, run and judge, in the folder `work`. Raises CannotCheck."""
    if (asked.video is None) != (asked.audio is None):
        raise CannotCheck("--video and --audio go together: give both or neither")
    image = build(asked.base, asked.detector)
    video, audio = (asked.video, asked.audio) if asked.video else samples(work / "samples")
    spec = make_spec(image, work / "job", video, audio, list_gpus())
    ran = asyncio.run(run(os.environ.get("DOCKER_HOST") or DockerSettings().base_url, spec))
    result = spec.job_dir / "out" / "result.mp4"
    if asked.output and result.is_file():
        shutil.copyfile(result, asked.output)
    return report(asked.base, ran)


def main(argv: Sequence[str] | None = None) -> int:
    asked = parse(argv)
    with tempfile.TemporaryDirectory(prefix="heygem-selfcheck-") as work:
        try:
            said = check(asked, Path(work))
        except CannotCheck as error:
            print(f"selfcheck: {error}", file=sys.stderr)
            return CANNOT
    print(json.dumps(said, ensure_ascii=False, indent=2) if asked.json else format_report(said))
    return OK if said["ok"] else BAD


if __name__ == "__main__":
    sys.exit(main())
