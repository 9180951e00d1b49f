"""The program of this image: a function of one job."""

import jobkit


def load() -> str:
    """Load what all jobs need, such as a model. A warm container does it before its job arrives."""
    return "utf-8"


def work(job: jobkit.Job, encoding: str) -> dict[str, object]:
    """Return the text in capitals, and write it to result.txt."""
    text = job.path("file").read_text(encoding) if "file" in job.input else str(job.input["text"])
    words = text.split()
    job.progress(0.0, "write", 0, len(words))
    for done, word in enumerate(words, start=1):
        words[done - 1] = word.upper()
        job.progress(done / len(words), "write", done, len(words))
    with job.output("result.txt") as path:
        path.write_text(" ".join(words) + "\n", encoding)
    return {"text": " ".join(words)}


if __name__ == "__main__":
    jobkit.run(work, load=load)
