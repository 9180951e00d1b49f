"""`runner.trial`: each rule of the container contract, broken by a program that breaks no other one."""

from pathlib import Path

import pytest

from runner.assets.container_folders import SecretFiles
from runner.endpoints import LocalEndpoint
from runner.engines.port import EngineInfo
from runner.engines.process import ProcessEngine
from runner.engines.selection import JOBKIT_DIR
from runner.execution.verdict import ClassifiedFailure, Done
from runner.gpu.port import NoGpuMonitor
from runner.trial.rules import RULES
from runner.trial.trial import Trial, TrialImpossible, TrialReport, relax_requirements, try_image
from schemas.endpoint import Endpoint, ProcessCommand, Resources, Timeouts

START = """
import json, os, signal, sys, time
from pathlib import Path
folder = Path(os.environ["LAMPLIGHTER_JOB"])
job = json.loads((folder / "job.json").read_text()) if (folder / "job.json").exists() else {}
def say(**message): print(json.dumps(message), flush=True)
def finish(): (folder / "out" / "output.json").write_text("{}")
"""
PROGRESS = 'say(type="progress", fraction=1.0)\n'
ERROR = 'say(type="error", code="internal", message="it broke")\n'

PROGRAMS = {
    "exit_code": f"{PROGRESS}{ERROR}sys.exit(3)",
    "error_line": f"{PROGRESS}sys.exit(70)",
    "progress": "finish()",
    "messages": f'{PROGRESS}say(type="progres", fraction=1.0)\nfinish()',
    "part_files": f'{PROGRESS}(folder / "out" / ".part-video.mp4").touch()\nfinish()',
    "output": PROGRESS,
    "stop": f"""
if job["attempt"] == 2:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    {PROGRESS}
    time.sleep(600)
{PROGRESS}
finish()
""",
    "warm": f"""
if os.environ.get("LAMPLIGHTER_WARM"): sys.exit(3)
{PROGRESS}
finish()
""",
    "read_only_root": f'{PROGRESS}Path("cache.bin").touch()\nfinish()',
    "not_root": f"""
{PROGRESS}{ERROR}
print("PermissionError: [Errno 13] Permission denied: '/models'", file=sys.stderr)
sys.exit(70)
""",
}


async def run(folder: Path, program: str, *, warm: bool = False, gpus: int = 0) -> TrialReport:
    image, jobs = folder / "image", folder / "jobs"
    image.mkdir()
    jobs.mkdir()
    (image / "main.py").write_text(START + program)
    config = Endpoint(
        name="tried",
        image="tried",
        warm=warm,
        process=ProcessCommand(("python3", "main.py")),
        timeouts=Timeouts(grace_s=0.2),
        resources=Resources(gpus=gpus),
        env={"GREETING": "good morning"},
        secrets=("HF_TOKEN",),
    )
    engine = ProcessEngine(folder / "processes", JOBKIT_DIR)
    secrets = {"HF_TOKEN": "hf_the-value"}
    trial = Trial(
        endpoint=LocalEndpoint(config, image),
        input={},
        files={},
        jobs_dir=jobs,
        secret_files=SecretFiles(),
        secrets=secrets,
    )
    async with engine, NoGpuMonitor() as monitor:
        report = await try_image(trial, engine, monitor, lambda _: None)
        assert await engine.find("try", "here") == []
    return report


@pytest.mark.parametrize("rule", RULES)
async def test_each_rule_that_is_broken_is_named_and_no_other(tmp_path: Path, rule: str) -> None:
    report = await run(tmp_path, PROGRAMS[rule], warm=rule == "warm")
    assert [broken.rule for broken in report.broken] == [rule]


@pytest.mark.parametrize("warm", [False, True])
async def test_a_program_that_keeps_the_contract_breaks_no_rule(tmp_path: Path, warm: bool) -> None:
    program = (
        "import jobkit, os\ndef work(job):\n    job.progress(1.0)\n    greeting = os.environ['GREETING']\n"
        "    return {'tries': job.attempt, 'greeting': greeting, 'length': len(job.secret('HF_TOKEN'))}\n"
        "jobkit.run(work)"
    )
    report = await run(tmp_path, program, warm=warm)
    assert (report.verdict, report.broken, report.was_warm) == (Done(), (), warm)
    assert report.output.data == {"tries": 1, "greeting": "good morning", "length": 12}


async def test_a_missing_module_is_named_and_is_no_wrong_exit_code(tmp_path: Path) -> None:
    report = await run(tmp_path, "import no_such_module")
    assert isinstance(report.verdict, ClassifiedFailure)
    assert (report.verdict.code, report.broken) == ("module_missing", ())
    assert "no_such_module" in report.verdict.message


async def test_an_endpoint_that_cannot_start_here_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrialImpossible, match="tried cannot start on this machine"):
        await run(tmp_path, "finish()", gpus=1)


async def test_requirements_that_choose_a_host_are_told_and_do_not_stop_a_trial(tmp_path: Path) -> None:
    required = Endpoint(
        name="tried",
        image="tried",
        gpu=("RTX 4090",),
        compute_capability="8.9",
        labels={"disk": "nvme"},
        runtime="runsc",
        resources=Resources(gpus=1),
    )
    plain = EngineInfo("process", "1", isolated=False)
    relaxed, unmet = relax_requirements(LocalEndpoint(required, tmp_path), NoGpuMonitor(), plain)
    assert unmet is not None
    for lacking in (
        "label disk = nvme",
        "a GPU (RTX 4090, compute capability 8.9 or higher)",
        "runtime runsc",
    ):
        assert lacking in unmet
    config = relaxed.config
    assert (config.required_gpu.is_any, config.labels, config.resources.gpus) == (True, {}, 1)
