"""Alert rules: one table, from which deploy/prometheus/rules.yaml and docs/alerts.md are made by `just docs`.

When an alert fires, with which numbers and for how long, is in schemas/installation.py, which notifications use too.
`python -m deploy.alert_rules` prints the rules file. `docs/alerts.md` explains each rule. Tests run both against a real
Prometheus, and compare every metric and label in an expression with the table of metrics. The names and thresholds are
those of `schemas/installation.py`, which notifications use too. To add an alert, see "Where to add things" in
docs/architecture.md.
"""

import sys
from collections.abc import Sequence
from string import Template
from typing import Any, Literal

import yaml
from msgspec import Struct

from schemas.installation import FAILED_JOBS_LIMIT, THRESHOLDS, Condition, Threshold

GROUP = "lamplighter"
DAY_S = 86_400.0
SUBQUERY_STEPS = 1440  # one a minute for a day
# "critical": jobs are refused, or the edge cannot power a host. "warning": it needs attention before something fails.
Severity = Literal["critical", "warning"]


class AlertRule(Struct, frozen=True, kw_only=True):
    """One alert.

    `expression`: PromQL, in which `$limit`, `$age_s` and `$window` are replaced by those of the threshold, and `$step`
    by a fraction of the window. `threshold`: when the alert fires. `summary`: one line, with the labels of the alert.
    `meaning`, `action`: for docs/alerts.md; `action` is also an annotation. `command`: what shows the cause.
    """

    condition: Condition
    expression: str
    threshold: Threshold
    summary: str
    meaning: str
    action: str
    command: str

    @property
    def name(self) -> str:
        """The name of the alert in Prometheus."""
        return "Lamplighter" + "".join(word.capitalize() for word in self.condition.split("_"))

    @property
    def severity(self) -> Severity:
        """The label `severity` of the alert."""
        return "critical" if self.threshold.is_critical else "warning"

    @property
    def title(self) -> str:
        """The heading of its section in docs/alerts.md."""
        return self.condition.replace("_", " ").capitalize().replace("Gpu", "GPU")

    @property
    def anchor(self) -> str:
        """The heading of its section in docs/alerts.md, as a link names it."""
        return self.condition.replace("_", "-")

    @property
    def promql(self) -> str:
        """The expression with its numbers."""
        when = self.threshold
        return Template(self.expression).substitute(
            limit=f"{when.limit:g}",
            age_s=f"{when.age_s:.10g}",
            window=duration(when.window_s),
            step=duration(max(1.0, when.window_s // SUBQUERY_STEPS)),
        )


def duration(seconds: float) -> str:
    """Return a duration as Prometheus writes it, in the largest unit that divides it."""
    for unit, size in (("d", DAY_S), ("h", 3600.0), ("m", 60.0)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


EDGE_JOB = '{job="lamplighter-edge"}'  # as in prometheus.yml
BACKUP = "lamplighter_backup_last_success_timestamp_seconds"
QUEUED = 'max by (endpoint) (lamplighter_jobs{status="queued"})'
# Every edge counts each job: the largest of several edges is the number of jobs.
ENDED = "sum by (endpoint) (max without (instance) (increase(lamplighter_jobs_ended_total[$window])))"
FAILED = ENDED.replace("[", '{status="failed"}[')

RULES: tuple[AlertRule, ...] = (
    AlertRule(
        condition=Condition.EDGE_DOWN,
        expression=f"up{EDGE_JOB} == 0",
        threshold=THRESHOLDS[Condition.EDGE_DOWN],
        summary="The edge at {{ $labels.instance }} does not answer.",
        meaning="Prometheus has not reached `/metrics` of the edge. Clients are refused. Jobs that run continue, and "
        "accepted jobs wait in the broker.",
        action="Check whether the process runs, and read its log. If it runs, check the network and the API key that "
        "Prometheus uses.",
        command="systemctl status lamplighter-edge",
    ),
    AlertRule(
        condition=Condition.BROKER_NOT_DURABLE,
        expression="lamplighter_broker_durable == 0 or lamplighter_broker_connected == 0",
        threshold=THRESHOLDS[Condition.BROKER_NOT_DURABLE],
        summary="The broker of {{ $labels.instance }} does not store what it acknowledges.",
        meaning="The broker does not sync each write, its disk failed a write, or it does not answer. New jobs are "
        "refused, unless `allow_unsynced` is set.",
        action="Set `sync_interval: always` in nats.conf. If the broker's disk was full, free space and restart it.",
        command="lamplighter doctor",
    ),
    AlertRule(
        condition=Condition.BROKER_STORE_FULL,
        expression="lamplighter_broker_store_used_ratio >= $limit",
        threshold=THRESHOLDS[Condition.BROKER_STORE_FULL],
        summary="The broker's store is {{ $value | humanizePercentage }} full.",
        meaning="The broker's store is at least 80 % full. The edge refuses new jobs, so that results of accepted jobs "
        "can still be stored.",
        action="Delete ended jobs, lower `retention_days`, or raise `max_file_store` of the broker.",
        command="lamplighter doctor",
    ),
    AlertRule(
        condition=Condition.QUEUE_GROWING,
        expression=f"{QUEUED} > $limit and {QUEUED} > {QUEUED.removesuffix(')')} offset $window)",
        threshold=THRESHOLDS[Condition.QUEUE_GROWING],
        summary="The queue of {{ $labels.endpoint }} has grown to {{ $value }} jobs and goes on growing.",
        meaning="For 30 minutes, the number of queued jobs of an endpoint has been above 20, and above the number of "
        "10 minutes before. The alert does not fire for a queue that gets shorter.",
        action="Check whether a host that offers the endpoint is on. If all hosts are busy, add a host or slots, or "
        "limit the waiting jobs of each owner (`quotas.waiting`).",
        command="lamplighter hosts",
    ),
    AlertRule(
        condition=Condition.WAIT_TOO_LONG,
        expression="max by (endpoint) (lamplighter_queue_oldest_wait_seconds) > $age_s",
        threshold=THRESHOLDS[Condition.WAIT_TOO_LONG],
        summary="A job of {{ $labels.endpoint }} has waited for {{ $value | humanizeDuration }}.",
        meaning="A queued job has waited for more than an hour. Jobs with a `not_before` in the future do not count.",
        action="The `reason` of the job says why it waits: no host, no free slot, an image that is missing.",
        command="lamplighter jobs --status queued",
    ),
    AlertRule(
        condition=Condition.HOST_FAULT,
        expression='max by (host) (lamplighter_host_power_state{state="fault"}) == 1',
        threshold=THRESHOLDS[Condition.HOST_FAULT],
        summary="The edge has given up powering {{ $labels.host }} on or off.",
        meaning="Several power calls failed, or the host did not boot in time. The edge makes no further call for "
        "this host.",
        action="Read in the history of the host why it failed, repair it, then end the fault with "
        "`lamplighter power HOST auto`.",
        command="lamplighter hosts",
    ),
    AlertRule(
        condition=Condition.WAKE_FAILED,
        expression="max by (host) (increase(lamplighter_wake_failures_total[$window])) > 0",
        threshold=THRESHOLDS[Condition.WAKE_FAILED],
        summary="{{ $labels.host }} was woken and did not come up.",
        meaning="In the last 30 minutes the edge powered a host on without success: the host did not boot within "
        "`boot_timeout`, or the power driver failed. The edge powers it off and on again before it gives up (the "
        "power state `fault`).",
        action="Read the answer of the power driver in the history of the host, and try the driver by hand.",
        command="lamplighter hosts",
    ),
    AlertRule(
        condition=Condition.GPU_UNHEALTHY,
        expression='max by (host) (lamplighter_host_gpus{fitness=~"unhealthy|lost"}) > 0',
        threshold=THRESHOLDS[Condition.GPU_UNHEALTHY],
        summary="{{ $value }} GPU of {{ $labels.host }} is unhealthy or lost.",
        meaning="A host reports a GPU that is unhealthy or lost and gets no jobs: after an XID error, uncorrected "
        "memory errors or a failed probe. Other GPUs of the host continue.",
        action="`lamplighter doctor` says why and what to do, often a reset of the GPU or a reboot.",
        command="lamplighter doctor",
    ),
    AlertRule(
        condition=Condition.HOST_IDLE,
        # The time since the host was last busy or off, as far as it is in the window.
        expression="time() - max by (host) (max_over_time("
        "timestamp(lamplighter_host_busy == 1 or lamplighter_host_up == 0)[$window:$step])) "
        "> max by (host) (lamplighter_host_idle_limit_seconds) + $age_s",
        threshold=THRESHOLDS[Condition.HOST_IDLE],
        summary="{{ $labels.host }} is on and has had no work for {{ $value | humanizeDuration }}.",
        meaning="A host has been on without work for 15 minutes longer than `idle_after`, and costs money. "
        "Something keeps the edge from powering it off.",
        action="The command says why each host is on, for example a power override or waiting jobs. docs/power.md "
        "explains the reasons.",
        command="lamplighter hosts",
    ),
    AlertRule(
        condition=Condition.WEBHOOKS_DELAYED,
        expression="max(lamplighter_webhook_outbox_oldest_age_seconds) > $age_s",
        threshold=THRESHOLDS[Condition.WEBHOOKS_DELAYED],
        summary="A webhook has waited for {{ $value | humanizeDuration }} to be delivered.",
        meaning="A webhook delivery has waited for more than an hour: its receiver does not answer, or refuses it. A "
        "delivery is tried nine times in two to three days, then it has failed.",
        action="Read the receiver's answer in the console, to which the command prints a link, or in "
        "`GET /v1/deliveries`. Repair the receiver, then replay the failed deliveries.",
        command="lamplighter console",
    ),
    AlertRule(
        condition=Condition.CERTIFICATE_EXPIRING,
        expression="min by (server) (lamplighter_certificate_expiry_timestamp_seconds) - time() < $age_s",
        threshold=THRESHOLDS[Condition.CERTIFICATE_EXPIRING],
        summary="The certificate of the {{ $labels.server }} ends in {{ $value | humanizeDuration }}.",
        meaning="A certificate expires within 14 days. Clients and hosts refuse an expired certificate. Programs that "
        "renew certificates usually do so 30 days before the end, so a renewal has probably failed.",
        action="Read the log of the program that renews it, or make a new certificate; the edge loads it by itself.",
        command="lamplighter doctor",
    ),
    AlertRule(
        condition=Condition.DISK_FULL,
        expression="lamplighter_edge_disk_free_bytes / lamplighter_edge_disk_size_bytes < $limit "
        "or lamplighter_runner_disk_free_bytes / lamplighter_runner_disk_size_bytes < $limit",
        threshold=THRESHOLDS[Condition.DISK_FULL],
        summary="Less than 10 % of the data disk of {{ $labels.instance }} is free.",
        meaning="Less than 10 % of the disk of the data folder of an edge or runner is free. When the disk is full, "
        "the edge refuses uploads, a broker on that disk stops, and jobs wait.",
        action="Delete files, lower `retention_days` or `cache_bytes`, or enlarge the disk.",
        command="df -h",
    ),
    AlertRule(
        condition=Condition.CLOCK_SKEW,
        expression="abs(lamplighter_edge_clock_offset_seconds) > $age_s "
        "or abs(lamplighter_host_heartbeat_age_seconds) > $age_s",
        threshold=THRESHOLDS[Condition.CLOCK_SKEW],
        summary="The clocks of the edge and {{ if $labels.host }}{{ $labels.host }}{{ else }}its broker{{ end }} "
        "differ by {{ $value | humanizeDuration }}.",
        meaning="The clock of the edge differs from that of its broker or of a host by more than 30 s. Deadlines, "
        "tokens, signed links, retention and quiet hours depend on the clock of the edge.",
        action="Synchronize the clocks with NTP.",
        command="timedatectl",
    ),
    AlertRule(
        condition=Condition.FAILURE_RATE,
        expression=f"{FAILED} / {ENDED} > $limit and {FAILED} > {FAILED_JOBS_LIMIT}",
        threshold=THRESHOLDS[Condition.FAILURE_RATE],
        summary="{{ $value | humanizePercentage }} of the jobs of {{ $labels.endpoint }} failed in the last hour.",
        meaning="In the last hour, more than three jobs of an endpoint failed: more than 20 % of those that ended.",
        action="Read the failure codes and the log of one job. docs/errors.md says what to do for each code.",
        command="lamplighter jobs --status failed",
    ),
    AlertRule(
        condition=Condition.BACKUP_OLD,
        expression=f"time() - max({BACKUP}) > $age_s "
        f"or absent({BACKUP}) and on () max(up{EDGE_JOB}) == 1 and on () max(up{EDGE_JOB} offset $window) == 1",
        threshold=THRESHOLDS[Condition.BACKUP_OLD],
        summary="No backup has succeeded for two days.",
        meaning="The last successful backup is older than two days, or the edge has run for two days without one. "
        "Data that is in no backup is lost with the disk. If you make backups without `lamplighter backup`, silence "
        "this alert.",
        action="Read why the last backup failed, and make one by hand.",
        command="systemctl status lamplighter-backup.timer",
    ),
)


def rules_file(rules: Sequence[AlertRule] = RULES) -> str:
    """Return the text of a rules file of Prometheus."""
    groups = [{"name": GROUP, "rules": [_prometheus_rule(rule) for rule in rules]}]
    head = "# Made from deploy/alert_rules.py by `just docs`; docs/alerts.md explains each alert.\n"
    return head + str(yaml.safe_dump({"groups": groups}, sort_keys=False, width=4000, allow_unicode=True))


def _prometheus_rule(rule: AlertRule) -> dict[str, Any]:
    return {
        "alert": rule.name,
        "expr": rule.promql,
        "for": duration(rule.threshold.for_s),
        "labels": {"severity": rule.severity, "condition": rule.condition.value},
        "annotations": {"summary": rule.summary, "action": rule.action, "page": f"docs/alerts.md#{rule.anchor}"},
    }


if __name__ == "__main__":
    sys.stdout.write(rules_file())
