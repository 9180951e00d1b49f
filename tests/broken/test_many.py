"""CI's share of `python -m tests.broken.many`."""

from collections.abc import AsyncIterator

import pytest

from tests.broken.many import SLOTS, play
from tests.e2e.conftest import Lit, lighted
from tests.e2e.installation import IMAGES

JOBS = 300


@pytest.fixture
async def busy(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lit]:
    async with lighted(tmp_path_factory.mktemp("many"), "process", None) as lit:
        await lit.installation.start_runner(endpoints=(IMAGES / "echo",), LAMPLIGHTER_SLOTS=str(SLOTS))
        yield lit
        print(lit.installation.tail())  # noqa: T201 - shown by pytest when the test failed


@pytest.mark.long(44)
@pytest.mark.timeout(600)
async def test_of_300_jobs_the_crashing_twentieth_fails_and_all_others_succeed(busy: Lit):
    assert (await play(busy, JOBS)).wrong(JOBS) == {}
