"""Media that all tests of the HeyGem image share."""

from pathlib import Path

import pytest

from tests.images.heygem.runs import Samples, make_samples


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return make_samples(tmp_path_factory.mktemp("heygem"))
