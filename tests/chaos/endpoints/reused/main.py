"""reused: work for a while, and leave bytes that anybody can check; then wait for the next job."""

import time

import jobkit

EVERY_S = 0.05
BLOCKS = 4096  # as in the endpoint `stamped`


def work(job: jobkit.Job) -> dict[str, object]:
    """Report progress for `seconds`, and leave `result.bin`: the text, BLOCKS times."""
    until = time.monotonic() + job.input.get("seconds", 0)
    step = 0
    while time.monotonic() < until:
        step += 1
        time.sleep(EVERY_S)
        job.progress(0.0, "working", step)
    with job.output("result.bin") as path:
        path.write_bytes(job.input.get("text", "").encode() * BLOCKS)
    return {"text": job.input.get("text", "")}


if __name__ == "__main__":
    jobkit.run(work, reuse=True)
