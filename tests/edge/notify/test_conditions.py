"""Which conditions hold by which facts, when they begin and when they end."""

from datetime import UTC, datetime, timedelta

import pytest

from deploy.alert_rules import RULES as ALERT_RULES
from edge.notify.conditions import (
    CONDITION_TEXTS,
    RULES,
    ConditionTracker,
    EndpointLoad,
    Facts,
    HostFigures,
    find_conditions,
)
from schemas.installation import JOB_FAILED, THRESHOLDS, Condition

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
HOUR_S, DAY_S = 3600.0, 86_400.0

HELD: list[tuple[Facts, Condition, str]] = [
    (Facts(broker_problem="it does not answer"), Condition.BROKER_NOT_DURABLE, ""),
    (Facts(store_used=0.8), Condition.BROKER_STORE_FULL, ""),
    (Facts(endpoints={"echo": EndpointLoad(queued=21, queued_before=20)}), Condition.QUEUE_GROWING, "echo"),
    (Facts(endpoints={"echo": EndpointLoad(oldest_wait_s=HOUR_S + 1)}), Condition.WAIT_TOO_LONG, "echo"),
    (Facts(endpoints={"echo": EndpointLoad(ended=16, failed=4)}), Condition.FAILURE_RATE, "echo"),
    (Facts(hosts={"gpu-1": HostFigures(fault="")}), Condition.HOST_FAULT, "gpu-1"),
    (Facts(hosts={"gpu-1": HostFigures(wake_failure="no boot")}), Condition.WAKE_FAILED, "gpu-1"),
    (Facts(hosts={"gpu-1": HostFigures(bad_gpus=("A",))}), Condition.GPU_UNHEALTHY, "gpu-1"),
    (Facts(hosts={"gpu-1": HostFigures(idle_s=1901, idle_limit_s=1000)}), Condition.HOST_IDLE, "gpu-1"),
    (Facts(hosts={"gpu-1": HostFigures(clock_skew_s=-31)}), Condition.CLOCK_SKEW, "gpu-1"),
    (Facts(webhooks_wait_s=HOUR_S + 1), Condition.WEBHOOKS_DELAYED, ""),
    (Facts(certificates_left_s={"edge": 14 * DAY_S - 1}), Condition.CERTIFICATE_EXPIRING, "edge"),
    (Facts(disks_free={"/data": 0.099}), Condition.DISK_FULL, "/data"),
    (Facts(backup_age_s=2 * DAY_S + 1), Condition.BACKUP_OLD, ""),
]
NOT_HELD = [
    Facts(broker_problem=""),
    Facts(store_used=0.79),
    Facts(endpoints={"echo": EndpointLoad(queued=20, queued_before=0, oldest_wait_s=HOUR_S, ended=100, failed=20)}),
    Facts(endpoints={"echo": EndpointLoad(queued=21, queued_before=21, ended=3, failed=3)}),
    Facts(endpoints={"echo": EndpointLoad(queued=900)}),
    Facts(hosts={"gpu-1": HostFigures(idle_s=1900, idle_limit_s=1000, clock_skew_s=30)}),
    Facts(hosts={"gpu-1": HostFigures(idle_s=90_000)}),
    Facts(webhooks_wait_s=HOUR_S),
    Facts(certificates_left_s={"edge": 14 * DAY_S}),
    Facts(disks_free={"/data": 0.1}),
    Facts(backup_age_s=2 * DAY_S),
    Facts(),
]


@pytest.mark.parametrize(("facts", "condition", "subject"), HELD, ids=[str(row[1]) for row in HELD])
def test_a_condition_holds_beyond_its_threshold(facts: Facts, condition: Condition, subject: str):
    assert [finding.key for finding in find_conditions(facts).held] == [(condition, subject)]


@pytest.mark.parametrize("facts", NOT_HELD)
def test_no_condition_holds_at_its_threshold(facts: Facts):
    assert find_conditions(facts).held == ()


def test_every_condition_but_that_of_the_edge_itself_has_a_rule_and_a_case():
    assert set(RULES) == set(Condition) - {Condition.EDGE_DOWN}
    assert {condition for _, condition, _ in HELD} == set(RULES)
    assert set(THRESHOLDS) == set(Condition)
    assert set(CONDITION_TEXTS) == {*RULES, JOB_FAILED}


def test_what_is_not_known_is_neither_held_nor_gone():
    assert find_conditions(Facts()).unknown == set(RULES)
    assert Condition.HOST_FAULT not in find_conditions(Facts(hosts={})).unknown


def test_each_condition_has_an_alert_of_prometheus_with_its_threshold():
    assert {rule.condition: rule.threshold for rule in ALERT_RULES} == THRESHOLDS


def test_a_condition_begins_after_its_time_and_ends_when_it_stays_away():
    tracker, key = ConditionTracker(), (Condition.GPU_UNHEALTHY, "gpu-1")
    bad = find_conditions(Facts(hosts={"gpu-1": HostFigures(bad_gpus=("A",))}))
    good, unknown = find_conditions(Facts(hosts={"gpu-1": HostFigures()})), find_conditions(Facts())
    said = []
    for seconds, found in [
        (0, bad),
        (59, bad),
        (60, bad),
        (70, good),
        (90, bad),
        (100, good),
        (159, good),
        (160, good),
    ]:
        at = NOW + timedelta(seconds=seconds)
        tracker.note(found, at)
        begun = [finding.key for finding in tracker.begun(found, at)] == [key]
        said.append((seconds, begun, tracker.has_ended(key, found, at)))
    assert [row for row in said if any(row[1:])] == [(60, True, False), (160, False, True)]
    tracker.note(unknown, NOW + timedelta(hours=1))
    assert not tracker.has_ended(key, unknown, NOW + timedelta(hours=1))
