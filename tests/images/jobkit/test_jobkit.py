"""jobkit as an author uses it: small programs, run for real."""

import ast
import json
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from runner.execution.warm_container import send_start
from schemas.container_protocol import (
    ContainerLine,
    EndLine,
    ErrorLine,
    ExitCode,
    MetricLine,
    ProgressLine,
    ReadyLine,
)
from tests.images.job_process import IMAGES, make_job, parse_messages, read_output_data, run_program


def run(tmp_path: Path, code: str, **files: bytes) -> tuple[int, list[ContainerLine], str]:
    """Exit code, stdout's messages and stderr of a program around `code`."""
    with run_program(program(tmp_path, code), make_job(tmp_path, {"n": 3, "clip": "a.txt"}, **files)) as process:
        out, err = process.communicate(timeout=30)
    return process.returncode, parse_messages(out), err.decode()


def program(tmp_path: Path, code: str) -> Path:
    path = tmp_path / "main.py"
    path.write_text("import jobkit\n" + textwrap.dedent(code))
    return path


def test_three_lines_are_enough(tmp_path: Path) -> None:
    code = """
    def work(job):
        assert job.traceparent is None, "this job is not traced"
        return {"text": job.path("clip").read_text().upper(), "who": [job.id, job.round, job.attempt]}
    jobkit.run(work)
    """
    assert run(tmp_path, code, **{"a.txt": b"hi"}) == (ExitCode.DONE, [], "")
    assert read_output_data(tmp_path) == {"text": "HI", "who": ["job-1", 1, 2]}


def test_load_is_given_to_work_and_none_is_an_empty_result(tmp_path: Path) -> None:
    code, _, _ = run(tmp_path, "jobkit.run(lambda job, model: print(model), load=lambda: 'weights')")
    assert (code, read_output_data(tmp_path)) == (0, {})


FAILURES = {
    "raise jobkit.BadInput('no_face', 'none seen')": (ExitCode.BAD_INPUT, "no_face", "none seen"),
    "raise jobkit.BadJob('bad_job', 'x')": (ExitCode.BAD_JOB, "bad_job", "x"),
    "raise jobkit.GpuUnusable('gpu_lost', 'x')": (ExitCode.GPU_UNUSABLE, "gpu_lost", "x"),
    "raise jobkit.TryAgain('busy', 'x')": (ExitCode.TRY_AGAIN, "busy", "x"),
    "raise ZeroDivisionError('by zero')": (ExitCode.INTERNAL, "internal", "ZeroDivisionError: by zero"),
    "raise MemoryError": (ExitCode.INTERNAL, "out_of_memory", "the process could not get more memory"),
    "raise RuntimeError('CUDA out of memory. Tried')": (ExitCode.TRY_AGAIN, "cuda_oom", "CUDA out of memory. Tried"),
    "raise RuntimeError('No CUDA GPUs are available')": (
        ExitCode.GPU_UNUSABLE,
        "gpu_unhealthy",
        "No CUDA GPUs are available",
    ),
    "raise RuntimeError('CUDA error: no kernel image is available for execution on the device')": (
        ExitCode.GPU_UNUSABLE,
        "gpu_unsupported",
        "CUDA error: no kernel image is available for execution on the device",
    ),
    "import no_such_module": (
        ExitCode.INTERNAL,
        "module_missing",
        "ModuleNotFoundError: No module named 'no_such_module'",
    ),
    "raise SystemExit(0)": (ExitCode.INTERNAL, "internal", "SystemExit: 0"),
    "return {'x': float('nan')}": (
        ExitCode.INTERNAL,
        "internal",
        "ValueError: Out of range float values are not JSON compliant",
    ),
    "job.output('../x').__enter__()": (
        ExitCode.INTERNAL,
        "internal",
        "ValueError: '../x' cannot be the name of an output: use a plain file name",
    ),
    "raise jobkit.BadInput('No Face', '')": (
        ExitCode.INTERNAL,
        "internal",
        "ValueError: 'No Face' is not a failure code: use 1 to 40 characters of a-z and _",
    ),
}


@pytest.mark.parametrize("statement", FAILURES)
def test_a_failure_has_an_exit_code_and_a_line(tmp_path: Path, statement: str) -> None:
    exit_code, code, message = FAILURES[statement]
    found, said, err = run(tmp_path, f"def work(job): {statement}\njobkit.run(work)")
    assert (found, said) == (exit_code, [ErrorLine(code, message)])
    assert "Traceback" in err
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_a_stop_that_a_librarys_clean_up_hides_is_still_a_stop(tmp_path: Path) -> None:
    """A lock that the signal interrupts raises RuntimeError on its way out."""
    code = """
import os, signal

def work(job):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    finally:
        raise RuntimeError("release unlocked lock")

jobkit.run(work)
"""
    assert run(tmp_path, code)[:2] == (143, [])


def test_load_that_fails_is_the_models_fault_unless_it_is_the_gpus(tmp_path: Path) -> None:
    code = "def load(): raise {}\njobkit.run(print, load=load)"
    assert run(tmp_path, code.format("OSError('no weights')"))[:2] == (
        ExitCode.INTERNAL,
        [ErrorLine("model_load_failed", "OSError: no weights")],
    )
    assert run(tmp_path, code.format("RuntimeError('no CUDA-capable device is detected')"))[0] == 69


@pytest.mark.parametrize("text", [None, "no json", "[]", '{"id": "x"}', '{"id": "x", "input": {}}'])
def test_a_job_that_cannot_be_read_is_a_bad_job(tmp_path: Path, text: str | None) -> None:
    make_job(tmp_path, {})
    (tmp_path / "job.json").unlink() if text is None else (tmp_path / "job.json").write_text(text)
    with run_program(program(tmp_path, "jobkit.run(print)"), tmp_path) as process:
        out, _ = process.communicate(timeout=30)
    assert process.returncode == ExitCode.BAD_JOB
    assert [type(message) for message in parse_messages(out)] == [ErrorLine]


def test_an_output_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    code = """
    def work(job):
        with job.output("good.mp4") as path:
            assert path.suffix == ".mp4"
            path.write_bytes(b"all")
        try:
            with job.output("bad.mp4") as path:
                path.write_bytes(b"half")
                raise ValueError
        except ValueError:
            pass
    jobkit.run(work)
    """
    assert run(tmp_path, code)[0] == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good.mp4", "output.json"]


def test_progress_is_sparse_and_its_last_arrives(tmp_path: Path) -> None:
    code = """
    def work(job):
        for n in range(10_001):
            job.progress(n / 10_000, "count", n, 10_000)
        job.metric("n", n, "1")
    jobkit.run(work)
    """
    found, said, _ = run(tmp_path, code)
    told = [message for message in said if isinstance(message, ProgressLine)]
    assert found == 0
    assert MetricLine("n", 10_000.0, "1") in said
    assert told[0].fraction == 0.0
    assert told[-1] == ProgressLine(1.0, "count", 10_000, 10_000)
    assert len(told) < 100


def test_held_back_progress_follows_while_the_job_is_busy(tmp_path: Path) -> None:
    code = """
    import sys
    def work(job):
        job.progress(0.1)
        job.progress(0.2)
        sys.stdin.read()
    jobkit.run(work)
    """
    with run_program(program(tmp_path, code), make_job(tmp_path, {})) as process:
        assert process.stdout is not None
        said = parse_messages(process.stdout.readline() + process.stdout.readline())
    assert said == [ProgressLine(0.1), ProgressLine(0.2)]


def test_what_others_print_never_spoils_a_message(tmp_path: Path) -> None:
    code = """
    import os
    def work(job):
        print("half a line", end="")
        os.write(1, b"from C")
        job.progress(0.5)
        job.log("logged")
    jobkit.run(work)
    """
    found, said, err = run(tmp_path, code)
    assert (found, said) == (0, [ProgressLine(0.5)])
    assert all(words in err for words in ("half a line", "from C", "logged\n"))


def test_sigterm_is_raised_in_the_job(tmp_path: Path) -> None:
    code = """
    import signal
    def work(job):
        try:
            job.progress(0)
            signal.pause()
        except Exception:
            print("swallowed")
        finally:
            job.log("cleaned up")
    jobkit.run(work)
    """
    with run_program(program(tmp_path, code), make_job(tmp_path, {})) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, b"cleaned up\n")


WARM = """
def work(job, model): return {"model": model, "n": job.input["n"]}
jobkit.run(work, load=lambda: "loaded")
"""


def ready(process: "subprocess.Popen[bytes]") -> list[ContainerLine]:
    assert process.stdout is not None
    return parse_messages(process.stdout.readline())


def test_warm_loads_says_ready_and_takes_one_job(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)  # a unix socket's own path would not do
    for part in ("out", "tmp"):
        (folder / part).mkdir(parents=True)
    with run_program(program(tmp_path, WARM), folder, LAMPLIGHTER_WARM="1") as process:
        assert ready(process) == [ReadyLine()]
        link = tmp_path / "s"
        link.symlink_to(folder)
        with socket.socket(socket.AF_UNIX) as nobody:
            nobody.connect(str(link / "start.sock"))
        make_job(folder, {"n": 7})
        with socket.socket(socket.AF_UNIX) as runner:
            runner.connect(str(link / "start.sock"))
            runner.sendall(b"start\n")
            process.communicate(timeout=30)
    assert process.returncode == 0
    assert read_output_data(folder) == {"model": "loaded", "n": 7}
    assert not (folder / "start.sock").exists()


def test_warm_ends_quietly_when_stopped(tmp_path: Path) -> None:
    with run_program(program(tmp_path, WARM), tmp_path, LAMPLIGHTER_WARM="1") as process:
        assert ready(process) == [ReadyLine()]
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == 143


def test_warm_that_cannot_load_says_why(tmp_path: Path) -> None:
    code = "def load(): raise OSError('no weights')\njobkit.run(print, load=load)"
    with run_program(program(tmp_path, code), tmp_path, LAMPLIGHTER_WARM="1") as process:
        out, _ = process.communicate(timeout=30)
    assert parse_messages(out) == [ErrorLine("model_load_failed", "OSError: no weights")]
    assert process.returncode == ExitCode.INTERNAL


def test_jobkit_is_python_3_8_and_standard_library() -> None:
    for path in (IMAGES / "jobkit").rglob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        imports = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        imports += [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
        assert {name.split(".")[0] for name in imports} <= {*sys.stdlib_module_names, "jobkit"}


REUSED = """
    import tempfile

    def work(job, loads):
        loads.append(1)
        if job.input.get("bad"):
            raise jobkit.BadInput("too_long", "it is too long")
        if job.input.get("broken"):
            raise ValueError("broken")
        return {"loads": len(loads), "scratch": tempfile.gettempdir()}

    jobkit.run(work, load=list, reuse=True)
"""


def start_job(root: Path, number: int, given: dict[str, object]) -> None:
    """Make the folder of a job and send its start line, as the runner does."""
    make_job(root / str(number), given)
    deadline = time.monotonic() + 30
    while not send_start(root, number):
        assert time.monotonic() < deadline, "nothing listens at the start socket"
        time.sleep(0.01)


def test_a_reused_process_runs_job_after_job_each_in_its_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    environ = {"LAMPLIGHTER_WARM": "1", "LAMPLIGHTER_REUSE": "1"}
    with run_program(program(tmp_path, REUSED), root, **environ) as process:
        start_job(root, 1, {})
        start_job(root, 2, {"bad": True})
        start_job(root, 3, {})
        start_job(root, 4, {"broken": True})
        out, err = process.communicate(timeout=30)
    assert process.returncode == ExitCode.INTERNAL
    assert [message for message in parse_messages(out) if not isinstance(message, ProgressLine)] == [
        ReadyLine(1),
        EndLine(0),
        ReadyLine(2),
        ErrorLine("too_long", "it is too long"),
        EndLine(65),
        ReadyLine(3),
        EndLine(0),
        ReadyLine(4),
        ErrorLine("internal", "ValueError: broken"),
    ]
    marks = [line for line in err.decode().splitlines() if line.startswith('{"type"')]
    assert [json.loads(line)["type"] for line in marks] == ["ready", "end", "ready", "end", "ready", "end", "ready"]
    assert read_output_data(root / "3") == {"loads": 3, "scratch": str(root / "3" / "tmp")}


def test_without_reuse_the_process_ends_with_its_first_job(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    code = REUSED.replace(", reuse=True", "")
    with run_program(program(tmp_path, code), root, LAMPLIGHTER_WARM="1", LAMPLIGHTER_REUSE="1") as process:
        start_job(root, 1, {})
        out, _ = process.communicate(timeout=30)
    assert (process.returncode, parse_messages(out)) == (0, [ReadyLine(1)])
    assert read_output_data(root / "1")["loads"] == 1


def test_folders_of_the_endpoint_are_found_and_a_missing_one_is_named(tmp_path: Path) -> None:
    env = {"LAMPLIGHTER_VOLUME_WEIGHTS": "/weights", "LAMPLIGHTER_CACHE_KERNELS": "/kernels"}
    code = """
    try:
        jobkit.cache("weights")
    except LookupError as error:
        missing = str(error)
    is_there = [str(jobkit.volume("weights")), str(jobkit.cache("kernels"))]
    jobkit.run(lambda job: {"there": is_there, "missing": missing})
    """
    with run_program(program(tmp_path, code), make_job(tmp_path, {}), **env) as process:
        process.communicate(timeout=30)
    assert read_output_data(tmp_path) == {
        "there": ["/weights", "/kernels"],
        "missing": "there is no cache weights: add [[caches]] of this name to endpoint.toml",
    }
