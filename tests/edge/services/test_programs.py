"""Two hosts that run one endpoint differently are told apart."""

import pytest
from msgspec.structs import replace

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
    assert do_programs_differ({"gpu-1": ONE, "gpu-2": other}, {}) is differs
    assert not do_programs_differ({"gpu-2": other}, {})


BUILT = JobProgram("echo:1", "sha256:bb", "sha256:11")
PLAIN = JobProgram(endpoint_digest="sha256:11")


@pytest.mark.parametrize(
    ("programs", "sources", "differs"),
    [
        ((ONE, BUILT), ("f1", "f1"), False),  # built on each host from the same files
        ((ONE, BUILT), ("f1", "f2"), True),
        ((ONE, BUILT), ("f1", None), True),  # the other one was pulled, or has an older runner
        ((ONE, ONE), ("f1", "f2"), False),  # the same image, whatever is in the folder
        ((ONE, replace(BUILT, endpoint_digest="sha256:22")), ("f1", "f1"), True),
        ((PLAIN, PLAIN), ("f1", "f1"), False),
        ((PLAIN, PLAIN), ("f1", "f2"), True),
        ((PLAIN, PLAIN), ("f1", None), False),
    ],
)
def test_programs_that_came_from_no_registry_are_compared_by_their_folders(
    programs: tuple[JobProgram, JobProgram], sources: tuple[str | None, str | None], differs: bool
) -> None:
    hosts = ("gpu-1", "gpu-2")
    told = {host: source for host, source in zip(hosts, sources, strict=True) if source is not None}
    assert do_programs_differ(dict(zip(hosts, programs, strict=True)), told) is differs
