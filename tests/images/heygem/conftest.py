"""What all tests of the HeyGem image share: media, and the worker's package, as it lies beside main.py."""

import sys

import pytest

from tests.images.heygem.worker_runs import WorkerSamples, make_samples
from tests.images.job_process import IMAGES

sys.path[:0] = [str(IMAGES / "jobkit"), str(IMAGES / "heygem")]


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> WorkerSamples:
    return make_samples(tmp_path_factory.mktemp("heygem"))
