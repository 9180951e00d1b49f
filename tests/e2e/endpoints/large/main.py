"""Answers 300 kB of data, which is more than `output.data` takes."""

import jobkit

if __name__ == "__main__":
    jobkit.run(lambda job: {"text": "x" * 300_000})
