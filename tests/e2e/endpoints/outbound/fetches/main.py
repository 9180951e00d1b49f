"""Request a URL by the proxy of the environment."""

import urllib.error
import urllib.request

import jobkit


def fetch(job: jobkit.Job) -> dict[str, object]:
    job.progress(0.0, "fetch")
    try:
        with urllib.request.urlopen(job.input["url"], timeout=30) as response:
            return {"status": response.status}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "text": error.read().decode()}


if __name__ == "__main__":
    jobkit.run(fetch)
