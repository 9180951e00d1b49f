"""The alert rules: promtool plays each condition against deploy/prometheus/rules.yaml."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec import Struct

from deploy.alert_rules import RULES, AlertRule, rules_file
from tests.support.installation import ROOT
from tests.support.prometheus_tools import run_promtool
from tests.support.promql import find_unknown_names

RULES_FILE = ROOT / "deploy/prometheus/rules.yaml"
MINUTE_S = 60
HOUR_S = 3600
DAY_S = 24 * HOUR_S


class PlayedCondition(Struct, frozen=True, kw_only=True):
    """Series, one value a minute, in which a condition begins and ends. `quiet_at`, `fires_at`, `mended_at`: minutes.

    `labels`, `summary`: those of the alert while it fires.
    """

    series: dict[str, str]
    quiet_at: int
    fires_at: int
    mended_at: int
    labels: dict[str, str]
    summary: str


CERTIFICATE = "lamplighter_certificate_expiry_timestamp_seconds"
EDGE = '{job="lamplighter-edge",instance="127.0.0.1:8000"}'
EDGE_LABELS = {"job": "lamplighter-edge", "instance": "127.0.0.1:8000"}

CONDITIONS: dict[str, PlayedCondition] = {
    "edge_down": PlayedCondition(
        series={f"up{EDGE}": "1x9 0x9 1x9"},
        quiet_at=11,
        fires_at=13,
        mended_at=21,
        labels=EDGE_LABELS,
        summary="The edge at 127.0.0.1:8000 does not answer.",
    ),
    "broker_not_durable": PlayedCondition(
        series={f"lamplighter_broker_durable{EDGE}": "1x9 0x9 1x9"},
        quiet_at=10,
        fires_at=12,
        mended_at=21,
        labels=EDGE_LABELS,
        summary="The broker of 127.0.0.1:8000 does not store what it acknowledges.",
    ),
    "broker_store_full": PlayedCondition(
        series={f"lamplighter_broker_store_used_ratio{EDGE}": "0.79x9 0.8x9 0.5x9"},
        quiet_at=14,
        fires_at=16,
        mended_at=21,
        labels=EDGE_LABELS,
        summary="The broker's store is 80% full.",
    ),
    "queue_growing": PlayedCondition(
        series={
            'lamplighter_jobs{endpoint="preview",status="queued"}': "0+1x99 100-1x99",
            'lamplighter_jobs{endpoint="burst",status="queued"}': "0x9 500-2x190",
        },
        quiet_at=50,
        fires_at=60,
        mended_at=110,
        labels={"endpoint": "preview"},
        summary="The queue of preview has grown to 60 jobs and goes on growing.",
    ),
    "wait_too_long": PlayedCondition(
        series={'lamplighter_queue_oldest_wait_seconds{endpoint="preview"}': "0+60x69 0x9"},
        quiet_at=61,
        fires_at=63,
        mended_at=71,
        labels={"endpoint": "preview"},
        summary="A job of preview has waited for 1h 3m 0s.",
    ),
    "host_fault": PlayedCondition(
        series={
            'lamplighter_host_power_state{host="gpu-1",state="fault"}': "0x9 1x9 0x9",
            'lamplighter_host_power_state{host="gpu-1",state="online"}': "1x9 0x9 1x9",
        },
        quiet_at=9,
        fires_at=10,
        mended_at=20,
        labels={"host": "gpu-1"},
        summary="The edge has given up powering gpu-1 on or off.",
    ),
    "wake_failed": PlayedCondition(
        series={
            'lamplighter_wake_failures_total{host="gpu-1"}': "0x9 1x99",
            'lamplighter_wake_failures_total{host="gpu-2"}': "0x109",
        },
        quiet_at=9,
        fires_at=10,
        mended_at=41,
        labels={"host": "gpu-1"},
        summary="gpu-1 was woken and did not come up.",
    ),
    "gpu_unhealthy": PlayedCondition(
        series={
            'lamplighter_host_gpus{host="gpu-1",fitness="fit"}': "2x9 1x9 2x9",
            'lamplighter_host_gpus{host="gpu-1",fitness="unhealthy"}': "0x9 1x9 0x9",
            'lamplighter_host_gpus{host="gpu-2",fitness="hot"}': "1x29",
        },
        quiet_at=10,
        fires_at=12,
        mended_at=21,
        labels={"host": "gpu-1"},
        summary="1 GPU of gpu-1 is unhealthy or lost.",
    ),
    "host_idle": PlayedCondition(
        series={
            'lamplighter_host_up{host="gpu-1"}': "0x4 1x54",
            'lamplighter_host_busy{host="gpu-1"}': "_x4 1x4 0x39 1x9",
            'lamplighter_host_idle_limit_seconds{host="gpu-1"}': "900x59",
            'lamplighter_host_up{host="gpu-2"}': "0x4 1x54",
            'lamplighter_host_busy{host="gpu-2"}': "_x4 1x4 0x39 1x9",
            'lamplighter_host_idle_limit_seconds{host="gpu-2"}': "86400x59",
            'lamplighter_host_up{host="held"}': "0x4 1x39 0x14",
            'lamplighter_host_busy{host="held"}': "_x4 0x39",
            'lamplighter_host_idle_limit_seconds{host="held"}': "86400x59",
        },
        quiet_at=38,
        fires_at=41,
        mended_at=51,
        labels={"host": "gpu-1"},
        summary="gpu-1 is on and has had no work for 33m 0s.",
    ),
    "webhooks_delayed": PlayedCondition(
        series={f"lamplighter_webhook_outbox_oldest_age_seconds{EDGE}": "0+60x69 0x9"},
        quiet_at=61,
        fires_at=63,
        mended_at=71,
        labels={},
        summary="A webhook has waited for 1h 3m 0s to be delivered.",
    ),
    "certificate_expiring": PlayedCondition(
        series={
            f'{CERTIFICATE}{{server="edge"}}': f"{14 * DAY_S + HOUR_S}x89 {90 * DAY_S}x9",
            f'{CERTIFICATE}{{server="broker"}}': f"{90 * DAY_S}x99",
        },
        quiet_at=61,
        fires_at=65,
        mended_at=91,
        labels={"server": "edge"},
        summary="The certificate of the edge ends in 13d 23h 55m 0s.",
    ),
    "disk_full": PlayedCondition(
        series={
            f"lamplighter_edge_disk_free_bytes{EDGE}": "100x9 9x9 50x9",
            f"lamplighter_edge_disk_size_bytes{EDGE}": "100x29",
        },
        quiet_at=14,
        fires_at=16,
        mended_at=21,
        labels=EDGE_LABELS,
        summary="Less than 10 % of the data disk of 127.0.0.1:8000 is free.",
    ),
    "clock_skew": PlayedCondition(
        series={
            f"lamplighter_edge_clock_offset_seconds{EDGE}": "0x9 -45x9 1x9",
            'lamplighter_host_heartbeat_age_seconds{host="gpu-1"}': "3x29",
        },
        quiet_at=14,
        fires_at=16,
        mended_at=21,
        labels=EDGE_LABELS,
        summary="The clocks of the edge and its broker differ by 45s.",
    ),
    "failure_rate": PlayedCondition(
        series={
            'lamplighter_jobs_ended_total{endpoint="preview",status="succeeded"}': "0+3x199",
            'lamplighter_jobs_ended_total{endpoint="preview",status="failed"}': "0x59 0+1x59 59x79",
            'lamplighter_jobs_ended_total{endpoint="rare",status="failed"}': "0x59 1x79 2x59",
        },
        quiet_at=70,
        fires_at=120,
        mended_at=180,
        labels={"endpoint": "preview"},
        summary="24.69% of the jobs of preview failed in the last hour.",
    ),
    "backup_old": PlayedCondition(
        series={f"lamplighter_backup_last_success_timestamp_seconds{EDGE}": f"0x{2 * 1440 + 30} {2 * DAY_S}x30"},
        quiet_at=2 * 1440 + 4,
        fires_at=2 * 1440 + 6,
        mended_at=2 * 1440 + 40,
        labels={},
        summary="No backup has succeeded for two days.",
    ),
}


def test_each_rule_is_played():
    assert set(CONDITIONS) == {rule.condition for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.condition)
def test_every_name_in_a_rule_is_in_the_table_of_metrics(rule: AlertRule):
    assert find_unknown_names(rule.promql) == []


def test_the_rules_file_is_what_the_table_says():
    assert RULES_FILE.read_text() == rules_file(), "run: just docs"


def played(condition: str) -> dict[str, Any]:
    """Return promtool's test of a condition: its own alert fires while it holds and no other does."""
    case = CONDITIONS[condition]
    (own,) = (rule for rule in RULES if rule.condition == condition)
    fires = {
        "exp_labels": case.labels | {"severity": own.severity, "condition": condition},
        "exp_annotations": {
            "summary": case.summary,
            "action": own.action,
            "page": f"docs/alerts.md#{condition.replace('_', '-')}",
        },
    }
    checks = [
        {
            "eval_time": f"{minute}m",
            "alertname": rule.name,
            "exp_alerts": [fires] if rule is own and minute == case.fires_at else [],
        }
        for rule in RULES
        for minute in (case.quiet_at, case.fires_at, case.mended_at)
    ]
    series = [{"series": name, "values": values} for name, values in case.series.items()]
    return {"name": condition, "interval": "1m", "input_series": series, "alert_rule_test": checks}


@pytest.mark.parametrize("condition", sorted(CONDITIONS))
def test_an_alert_fires_with_its_condition_and_is_gone_when_it_is_mended(condition: str, tmp_path: Path):
    text = {"rule_files": [str(RULES_FILE)], "evaluation_interval": "1m", "tests": [played(condition)]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(text))
    run_promtool("test", "rules", tmp_path / "test.yaml")
