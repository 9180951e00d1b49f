"""Runs `code` of its input, with the job as `job` and its folder as `home`: untrusted, as every image is."""

import jobkit


def work(job: jobkit.Job) -> dict[str, object]:
    """What `code` leaves in `result` is the job's data."""
    names: dict[str, object] = {"job": job, "home": job.tmp.parent, "result": {}}
    exec(job.input["code"], names)
    result = names["result"]
    return result if isinstance(result, dict) else {}


if __name__ == "__main__":
    jobkit.run(work)
