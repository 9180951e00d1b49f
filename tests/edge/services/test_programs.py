"""Two hosts that run one endpoint differently are told apart."""

import pytest

from edge.hosts.endpoints import do_programs_differ
from schemas.job import JobProgram

ONE = JobProgram("echo:1", "sha256:aa", "sha256:11")


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        (ONE, False),
        (JobProgram("mirror/echo:1", "sha256:aa", "sha256:11"), False),
        (JobProgram("echo:1", "sha256:bb", "sha256:11"), True),
        (JobProgram("echo:1", "sha256:aa", "sha256:22"), True),
        (JobProgram(None, None, "sha256:11"), False),  # plain processes
        (JobProgram(), False),
    ],
)
def test_digests_decide_and_an_unknown_one_agrees(other: JobProgram, differs: bool) -> None:
    assert do_programs_differ([ONE, other]) is differs
    assert not do_programs_differ([other])
