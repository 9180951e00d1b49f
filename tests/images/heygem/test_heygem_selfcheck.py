"""`images/heygem/selfcheck`: what it finds in an image that plays the vendor's, and what it says of another."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from deploy import heygem_check
from deploy.heygem_check import ASSUMPTIONS, SelfcheckRun, format_report, judge_assumptions, parse_facts, report
from heygem_worker import vendor_survey
from tests.images.heygem.stand_in_images import vendors_image, with_pyav
from tests.images.heygem.test_heygem_source import NEEDS_FFMPEG, python
from tests.images.heygem.worker_runs import (
    STAND_IN_VENDORS,
    WorkerSamples,
    job_folder,
    start_worker,
    wait_for_end,
    worker_environ,
)
from tests.support.docker_images import ROOT, build_image, docker_url

__all__ = ["docker_url", "with_pyav"]

SELFCHECK = ROOT / "images" / "heygem" / "selfcheck"
ENGINES = {"gen1": "gen1", "gen2": "gen2", "unknown": "http"}

# On top of the image that plays the vendor's: its video, and a torch that the search for the right Python finds.
MORE = """
FROM {base}
COPY made.mp4 /code/made.mp4
RUN mkdir -p /usr/lib/python3/dist-packages/torch && touch /usr/lib/python3/dist-packages/torch/__init__.py
ENV HEYGEM_FAKE_RESULT=/code/made.mp4 {env}
"""


def checked(docker_url: str, base: str, samples: WorkerSamples, *more: str) -> "subprocess.CompletedProcess[str]":
    env = {"PATH": os.environ["PATH"], "DOCKER_HOST": docker_url, "DOCKER_BUILDKIT": "0"}
    argv = [str(SELFCHECK), base, "--video", str(samples.video), "--audio", str(samples.audio), *more]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def context(samples: WorkerSamples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "made.mp4").write_bytes(samples.made.read_bytes())
    return folder


def played(docker_url: str, with_pyav: str, context: Path, vendor: str, env: str = "A=b") -> str:
    base = vendors_image(docker_url, with_pyav, vendor)
    given = MORE.format(base=base, env=env)
    tag = f"lamplighter-test-heygem-selfcheck:{vendor}"
    return build_image(docker_url, tag, "--file", "-", str(context), given=given)


@pytest.mark.docker
@pytest.mark.parametrize("vendor", STAND_IN_VENDORS)
def test_an_image_as_assumed_passes(
    docker_url: str, with_pyav: str, context: Path, samples: WorkerSamples, tmp_path: Path, vendor: str
) -> None:
    base = played(docker_url, with_pyav, context, vendor)
    kept = tmp_path / "kept.mp4"
    done = checked(docker_url, base, samples, "--json", "--output", str(kept))
    said = json.loads(done.stdout or "{}")
    refused = [row for row in said["rows"] if row["as_assumed"] == "no"]
    if vendor == "unknown":
        assert {row["name"] for row in refused} == {"engine", "service"}, "its module is not known, and that is said"
        assert done.returncode == heygem_check.BAD
    else:
        assert (done.returncode, refused) == (heygem_check.OK, []), done.stderr
    assert said["job"]["exit_code"] == 0
    assert said["job"]["data"]["engine"] == ENGINES[vendor]
    assert kept.read_bytes() == samples.made.read_bytes()
    assert {row["name"] for row in said["rows"]} == {row.name for row in ASSUMPTIONS}
    found = {row["name"]: row["found"] for row in said["rows"]}
    assert "landmark2face_wy/checkpoints/test/opt.txt" in found["written_by_load"]
    if vendor == "gen1":
        assert found["functions"]["TransDhTask.work"].startswith("(self, audio_url, video_url, code,")
        assert found["frames_counted"] == 50
        assert 10 in found["queue_timeouts_s"]


@pytest.mark.docker
def test_an_image_that_writes_elsewhere_is_found_out(
    docker_url: str, with_pyav: str, context: Path, samples: WorkerSamples
) -> None:
    """As a new release of the vendor's might; the report names the path that the job may not write to."""
    base = played(docker_url, with_pyav, context, "gen1", "HEYGEM_FAKE=forbidden")
    done = checked(docker_url, base, samples)
    assert done.returncode == heygem_check.BAD, done.stderr
    assert "Permission denied: './somewhere/new.txt'" in done.stdout
    assert "[no  ] engine: a generation of its module that is known" in done.stdout
    assert "not all is as assumed" in done.stdout


@pytest.mark.docker
def test_what_cannot_be_checked_is_said(docker_url: str, samples: WorkerSamples) -> None:
    gone = checked(docker_url, "lamplighter-test-nowhere:gone", samples)
    assert gone.returncode == heygem_check.CANNOT
    assert "our layer cannot be built on lamplighter-test-nowhere:gone" in gone.stderr
    assert gone.stdout == ""


def test_a_video_without_a_speech_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert heygem_check.main(["base", "--video", "x.mp4"]) == heygem_check.CANNOT
    assert "go together" in capsys.readouterr().err


def test_the_facts_are_read_from_between_other_lines(capsys: pytest.CaptureFixture[str]) -> None:
    vendor_survey.print_fact("engine", "gen1")
    told = capsys.readouterr().err
    assert parse_facts(f"noise\n{told}fact: cut\n[2026] more\n") == {"engine": "gen1"}
    assert heygem_check.FACT_PREFIX == vendor_survey.PREFIX


@NEEDS_FFMPEG
def test_the_survey_tells_every_fact_under_the_vendors_python(tmp_path: Path, samples: WorkerSamples) -> None:
    folder = job_folder(tmp_path, samples)
    program = ROOT / "images" / "heygem" / "survey.py"
    with start_worker(worker_environ(folder, samples, "gen1"), python("3.8"), program) as process:
        ended = wait_for_end(process, folder)
    assert ended.code == 0, ended.log
    told = parse_facts(ended.log)
    assert {row.name for row in ASSUMPTIONS} - {"job"} == told.keys()
    assert told["interpreter"]["version"].startswith("3.8.")


def test_what_was_not_reported_is_not_as_assumed() -> None:
    ran = SelfcheckRun(code=70, failure="model_load_failed: it broke", log="one\ntwo\n")
    found = {row["name"]: row for row in judge_assumptions(ran)}
    assert found["home"]["as_assumed"] == "no"
    assert found["job"]["found"] == "model_load_failed: it broke"
    said = report("some/image", ran)
    assert (said["ok"], said["log"]) == (False, ["one", "two"])
    assert "model_load_failed: it broke" in format_report(said)


def test_a_hosts_driver_libraries_are_expected_only_beside_a_gpu() -> None:
    ran = SelfcheckRun(facts={"driver_libraries": ["/usr/lib/x86_64-linux-gnu/libcuda.so.1"]}, code=0)
    judged = {
        gpus: {row["name"]: row["as_assumed"] for row in judge_assumptions(replace(ran, gpus=gpus))} for gpus in (0, 1)
    }
    assert (judged[0]["driver_libraries"], judged[1]["driver_libraries"]) == ("no", "told")
