"""Write a Lamplighter image in three lines: `import jobkit`, a function of one job, `jobkit.run(work)`.

    import jobkit

    def work(job):
        with job.output("result.txt") as path:
            path.write_text(job.path("file").read_text().upper())
        return {"text": job.input.get("text", "")}

    jobkit.run(work)

Needs Python 3.8 and nothing else. It implements the container contract (schemas/container_protocol.py).
"""

from jobkit.entry import run
from jobkit.errors import BadInput, BadJob, GpuUnusable, JobError, Stopped, TryAgain
from jobkit.job import Job, cache, volume

__all__ = ["BadInput", "BadJob", "GpuUnusable", "Job", "JobError", "Stopped", "TryAgain", "cache", "run", "volume"]
