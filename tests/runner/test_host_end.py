"""The end of a host: which jobs may start before it, by the table of the rule, and how the runner learns of it."""

import time

import pytest

from runner.claiming.schedulability import HostState
from runner.host_facts import SLURM_END_VARIABLE, HostEnd, HostEndInvalid, TimeLeft, find_end, has_time

HOUR = 3600.0


@pytest.mark.parametrize(
    ("left_s", "limit_s", "longest_s", "starts"),
    [
        (HOUR, 600, None, True),
        (600, 600, None, True),
        (599, 600, None, False),
        (599, 600, 60, True),  # its jobs are shorter than their limit
        (75, 600, 60, True),
        (74, 600, 60, False),
        (700, 600, 650, True),  # the limit ends it in time
        (HOUR, 2 * HOUR, None, True),  # no host like this one has time for the limit
        (HOUR / 2, 2 * HOUR, None, True),
        (HOUR / 2 - 1, 2 * HOUR, None, False),
        (HOUR / 2, 2 * HOUR, HOUR, False),
        (0, 600, None, False),
    ],
)
def test_a_job_starts_if_it_ends_before_its_host(
    left_s: float, limit_s: float, longest_s: float | None, starts: bool
) -> None:
    assert has_time(left_s, HOUR, limit_s, longest_s) is starts


def test_the_end_is_the_earliest_that_is_known() -> None:
    now = time.time()
    assert find_end(None, None, {}) is None
    for at, after_s, environ, lifetime_s in (
        (now + 100, None, {SLURM_END_VARIABLE: str(now + 900)}, 100),
        (now + 900, 1000, {SLURM_END_VARIABLE: str(now + 200)}, 200),  # Slurm kills the runner all the same
        (None, None, {SLURM_END_VARIABLE: str(now + 200)}, 200),
        (now + 300, 50, {}, 50),
        (None, 60, {}, 60),
        (now - 5, None, {}, 0),
    ):
        end = find_end(at, after_s, environ)
        assert end is not None
        assert end.lifetime_s == pytest.approx(lifetime_s, abs=30)
        assert end.left_s <= end.lifetime_s
    told = r"^SLURM_JOB_END_TIME=soon is not a Unix time: unset it, and set ends_at instead$"
    with pytest.raises(HostEndInvalid, match=told):
        find_end(now, None, {SLURM_END_VARIABLE: "soon"})


def test_what_ran_here_decides_and_the_reason_names_both_times() -> None:
    now = 0.0
    left = HostState(end=HostEnd(HOUR, HOUR, lambda: now)).time_left
    now = HOUR - 100
    assert left.why_too_late("echo", 600) == "this host ends in 100 s: a job may run 600 s"
    assert left.why_too_late("echo", 100) is None
    for run_s in (10, 90, 20):
        left.note_run("echo", run_s)
    told = "this host ends in 100 s: a job may run 600 s, and the longest of the last ones ran 90 s"
    assert left.why_too_late("echo", 600) == told
    assert TimeLeft(None).why_too_late("echo", 1e9) is None
