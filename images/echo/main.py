"""echo: the smallest image. It behaves well or badly on request, and the tests run it."""

import os
import shutil
import signal
import subprocess
import sys
import time

import jobkit

STDOUT = os.dup(1)  # before jobkit redirects it: some behaviours write to the real stdout
MIB = 1 << 20
FLOOD = 100 * MIB
NO_NEWLINE = 8 * MIB
EAT = "held = []\nwhile True: held.append(bytearray(b'x') * (8 << 20))"


def work(job: jobkit.Job) -> dict[str, object]:
    """Report progress `steps` times over `seconds`, misbehave if asked to, and return the inputs."""
    began = time.time()
    # Before any misbehaviour, so that the job counts as alive.
    job.progress(0.0, "echo", 0, job.input.get("steps", 10))
    job.log(f"first line of job code at {began:.6f}")  # the benches read it
    BEHAVIOURS[job.input.get("behave", "ok")](job)
    _steps(job)
    if "file" in job.input:
        source = job.path("file")
        with job.output(source.name) as path:
            shutil.copyfile(source, path)
    return {"text": job.input.get("text", "")}


def _steps(job: jobkit.Job) -> None:
    steps, seconds = int(job.input.get("steps", 10)), job.input.get("seconds", 0)  # JSON Schema: 10.0 is an integer
    started = time.monotonic()
    for step in range(1, steps + 1):
        time.sleep(max(0.0, started + seconds * step / steps - time.monotonic()))
        job.progress(step / steps, "echo", step, steps)
        job.log(f"step {step} of {steps}")


def _exit(job: jobkit.Job) -> None:
    os._exit(int(job.input.get("exit", 0)))


def _oom(_job: jobkit.Job) -> None:
    exec(EAT)  # noqa: S102 - the same few lines that the child runs


def _child_oom(job: jobkit.Job) -> None:
    subprocess.run([sys.executable, "-c", EAT], check=False)
    _exit(job)


def _ignore_term(job: jobkit.Job) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    job.log("ignoring SIGTERM")
    _hang(job)


def _hang(_job: jobkit.Job) -> None:
    while True:
        time.sleep(3600)


def _flood(_job: jobkit.Job) -> None:
    line = b"all work and no play makes a flood\n"
    block = line * (MIB // len(line))
    for _ in range(FLOOD // len(block)):
        _print(block)


def _no_newline(_job: jobkit.Job) -> None:
    for _ in range(NO_NEWLINE // MIB):
        _print(b"x" * MIB)


def _print(data: bytes) -> None:
    while data:
        data = data[os.write(STDOUT, data) :]


def _partial(job: jobkit.Job) -> None:
    with job.output("result.bin") as path:
        path.write_bytes(b"half")
        _exit(job)


def _segv(_job: jobkit.Job) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


BEHAVIOURS = {
    "ok": lambda job: None,
    "exit": _exit,
    "oom": _oom,
    "child_oom": _child_oom,
    "ignore_term": _ignore_term,
    "flood": _flood,
    "no_newline": _no_newline,
    "hang": _hang,
    "partial": _partial,
    "segv": _segv,
}

if __name__ == "__main__":
    jobkit.run(work, reuse=True)  # where its endpoint.toml has [reuse]
