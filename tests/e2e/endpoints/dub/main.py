"""Put the audio under the video, after `seconds` of reported progress."""

import time

import jobkit

STEPS = 10


def work(job: jobkit.Job) -> dict[str, object]:
    """Write result.mp4."""
    for step in range(1, STEPS + 1):
        time.sleep(job.input.get("seconds", 0) / STEPS)
        job.progress(step / STEPS, "dub", step, STEPS)
    with job.output("result.mp4") as path:
        path.write_bytes(job.path("video").read_bytes() + job.path("audio").read_bytes())
    return {"width": 640, "height": 360, "seconds": 1.5}


if __name__ == "__main__":
    jobkit.run(work)
