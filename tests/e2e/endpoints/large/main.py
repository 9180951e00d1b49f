"""Answer with 300 kB of data, more than `output.data` accepts."""

import jobkit

if __name__ == "__main__":
    jobkit.run(lambda job: {"text": "x" * 300_000})
