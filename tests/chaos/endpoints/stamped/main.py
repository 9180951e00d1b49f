"""stamped: write down when it runs, so that two overlapping attempts at one job can be seen.

The file belongs to the test (tests/chaos/run_stamps.py): it exists before the start and has a second name that stays.
"""

import os
import time

import jobkit

EVERY_S = 0.05
BAD_INPUT, TRY_AGAIN = 65, 75
BLOCKS = 4096
VOLUME = "LAMPLIGHTER_VOLUME_WEIGHTS"


def work(job: jobkit.Job) -> dict[str, object]:
    """Write stamps for `seconds`, then fail as the input says, or leave `result.bin`: the text, BLOCKS times."""
    until = time.monotonic() + job.input.get("seconds", 0)
    with (job.tmp / "stamps").open("a") as stamps:
        _stamp(stamps)
        step = 0
        while time.monotonic() < until:
            step += 1
            time.sleep(EVERY_S)
            _stamp(stamps)
            job.progress(0.0, "stamping", step)
            job.log(f"step {step}")
        if job.round <= job.input.get("refusals", 0):
            os._exit(BAD_INPUT)
        if job.attempt <= job.input.get("stumbles", 0):
            os._exit(TRY_AGAIN)
        with job.output("result.bin") as path:
            path.write_bytes(_content(job.input.get("text", "")))
        _stamp(stamps)
    return {"text": job.input.get("text", "")}


def _content(text):
    """Return the text, BLOCKS times: from the volume of the endpoint `weighted`, and otherwise from the input."""
    if VOLUME not in os.environ:
        return text.encode() * BLOCKS
    weights = jobkit.volume("weights")
    with (jobkit.cache("kernels") / "runs").open("a") as runs:
        runs.write("run\n")
    return (weights / "a").read_bytes() + (weights / "model" / "b").read_bytes().removesuffix(b"\n")


def _stamp(stamps):
    # The kernel's clock is the same in every container of this machine.
    stamps.write(f"{time.monotonic()}\n")
    stamps.flush()


if __name__ == "__main__":
    jobkit.run(work)
