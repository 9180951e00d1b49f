"""Counts what happens to the power of hosts, and how long they are on. Both from the records in POWER.

Every edge reads all records, so each edge counts the changes of every writer.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

from bus.metric_registry import MetricSnapshot
from edge.core.clock import HOUR_S, Clock
from edge.core.metrics import EdgeMetrics
from edge.power.conditions import active_override
from edge.power.controller import PowerController
from schemas.host_config import AnyHostConfig
from schemas.power import PowerRecord, PowerState

_FAILED_WAKE_STATES = frozenset({PowerState.STOPPING, PowerState.FAULT})


class PowerMetrics:
    """Counts in `metrics`, from now on. `rules`: the settings of the declared hosts."""

    def __init__(
        self, power: PowerController, rules: Mapping[str, AnyHostConfig], metrics: EdgeMetrics, now: Clock
    ) -> None:
        self._power = power
        self._rules = rules
        self._metrics = metrics
        self._now = now
        self._counted_until = now()
        self._on_seconds: dict[str, float] = {}
        power.subscribe_records(self._on_record_change)

    def read(self, snapshot: MetricSnapshot) -> None:
        """Add the power of the declared hosts to the values of a scrape."""
        at = self._now()
        for host, record in self._power.records().items():
            for state in PowerState:
                snapshot.set("lamplighter_host_power_state", record.state is state, host, state)
            override = active_override(record, at)
            for want in ("on", "off"):
                is_held = override is not None and override.want == want
                snapshot.set("lamplighter_host_override", is_held, host, want)
            rules = self._rules[host]
            snapshot.set("lamplighter_host_idle_limit_seconds", max(rules.idle_after, rules.min_on), host)
        for host, seconds in self.on_seconds().items():
            snapshot.set("lamplighter_host_on_seconds_total", seconds, host)
            price = self._rules[host].price
            if price is not None:
                cost = seconds / HOUR_S * price.hourly_cost
                snapshot.set("lamplighter_host_cost_total", cost, host, price.currency)

    def on_seconds(self) -> Mapping[str, float]:
        """Return for how many seconds each declared host was on since this process started."""
        at = max(self._now(), self._counted_until)  # the clock may have been set back
        for host, record in self._power.records().items():
            counted = self._on_seconds.get(host, 0.0)
            self._on_seconds[host] = counted + seconds_on(record, self._counted_until, at)
        self._counted_until = at
        return self._on_seconds

    def _on_record_change(self, host: str, before: PowerRecord, after: PowerRecord) -> None:
        if before.state is not after.state and after.state is PowerState.WAKING:
            self._metrics.wakes.inc(host)
        if before.state is PowerState.WAKING and after.state in _FAILED_WAKE_STATES:
            self._metrics.wake_failures.inc(host)
        if after.state is PowerState.ONLINE and after.wake_durations_s != before.wake_durations_s:
            self._metrics.wake_durations.observe(after.wake_durations_s[-1], host)
        call = after.call
        is_counted = before.call is not None and call is not None and before.call.id == call.id and before.call.result
        if call is not None and call.result is not None and not is_counted:
            self._metrics.power_calls.inc(host, call.verb, call.result.outcome)


def seconds_on(record: PowerRecord, since: datetime, until: datetime) -> float:
    """Return for how many seconds between the two times the host had power."""
    intervals = [(one.since, one.until) for one in record.on_intervals]
    if record.on_since is not None:
        intervals.append((record.on_since, until))
    overlaps = (min(end, until) - max(start, since) for start, end in intervals)
    return sum((overlap for overlap in overlaps if overlap > timedelta()), timedelta()).total_seconds()
