"""Run the field `code` of the input, with the variables `job` and `home`."""

import jobkit


def work(job: jobkit.Job) -> dict[str, object]:
    """Run the code. Its variable `result` becomes the output data of the job."""
    names: dict[str, object] = {"job": job, "home": job.tmp.parent, "result": {}}
    exec(job.input["code"], names)
    result = names["result"]
    return result if isinstance(result, dict) else {}


if __name__ == "__main__":
    jobkit.run(work)
