"""Power states for clients: the state and history of a host, why a job waits for it, and for how long."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from statistics import median

from msgspec import to_builtins
from msgspec.structs import replace

from edge.hosts.registry import WakeForecast
from edge.power.conditions import active_override
from schemas.host import HostView, KeptOn
from schemas.power import PowerCallOutcome, PowerRecord, PowerState, ReportedPower
from schemas.status import WaitReason

NOTICE_KINDS: Mapping[PowerState, str] = {
    PowerState.WAKING: "host_waking",
    PowerState.BLOCKED: "host_blocked",
    PowerState.FAULT: "host_fault",
}

WAIT_REASONS: Mapping[PowerState, WaitReason] = {
    PowerState.OFF: WaitReason.HOST_OFF,
    PowerState.WAKING: WaitReason.HOST_WAKING,
    PowerState.STOPPING: WaitReason.HOST_OFF,
    PowerState.BLOCKED: WaitReason.HOST_BLOCKED,
    PowerState.FAULT: WaitReason.HOST_FAULT,
}

# Of several hosts, the reason of the one closest to starting the job is shown.
REASONS_NEAREST_FIRST = (
    WaitReason.HOST_BOOTING,
    WaitReason.HOST_WAKING,
    WaitReason.HOST_OFF,
    WaitReason.HOST_BLOCKED,
    WaitReason.HOST_FAULT,
)


def wait_reason(record: PowerRecord, reported: ReportedPower) -> WaitReason | None:
    """Return why a job waits for the host; None while it is online."""
    if record.state is PowerState.WAKING and reported is ReportedPower.ON:
        return WaitReason.HOST_BOOTING
    return WAIT_REASONS.get(record.state)


def wake_median_s(record: PowerRecord) -> float | None:
    """Return the median of the measured seconds from the start call to the first heartbeat."""
    return median(record.wake_durations_s) if record.wake_durations_s else None


def wake_left_s(record: PowerRecord, at: datetime) -> float | None:
    """Return the expected seconds until the first heartbeat: the median wake, less the time since the start call."""
    usual = wake_median_s(record)
    if usual is None or record.state is not PowerState.WAKING or record.call is None:
        return usual
    passed_s = max(0.0, (at - record.call.at).total_seconds())  # the clock may have been set back
    return max(0.0, usual - passed_s)


def nearest_forecast(forecasts: Iterable[WakeForecast]) -> WakeForecast | None:
    """Return the forecast of the host closest to starting the job."""
    return min(
        forecasts, key=lambda forecast: (REASONS_NEAREST_FIRST.index(forecast.reason), forecast.host), default=None
    )


def forecast_wake(host: str, record: PowerRecord, reason: WaitReason, at: datetime) -> WakeForecast:
    """Return when the host can take jobs, which wait for it with this reason."""
    return WakeForecast(reason, host, wake_median_s(record), wake_left_s(record, at), _reason_blocked(record))


def _reason_blocked(record: PowerRecord) -> str:
    """Return what the power driver said last about a host that it has no machine for, such as Slurm's reason, or ""."""
    result = record.call.result if record.call is not None and record.state is PowerState.BLOCKED else None
    return result.why if result is not None and result.outcome is PowerCallOutcome.NO_CAPACITY else ""


def with_unknown_power(view: HostView, why: str) -> HostView:
    """Return `view` with the reason for which the power driver cannot report the state."""
    return replace(view, waits=(*view.waits, f"ask the power driver for its state ({why}): see that driver's settings"))


def host_view(
    host: str, seen: HostView | None, record: PowerRecord, at: datetime, kept_on: tuple[KeptOn, ...]
) -> HostView:
    """Return the host as `/v1/hosts` shows it. `seen`: its view by its heartbeats; None if it was never seen."""
    override, blocked = active_override(record, at), _reason_blocked(record)
    view = seen or HostView(id=host, state=record.state)
    is_online = record.state is PowerState.ONLINE and seen is not None
    return replace(
        view,
        state=view.state if is_online else record.state,
        since=record.since,
        wake_median_s=wake_median_s(record),
        hold=None if override is None else to_builtins(override),
        declared=True,
        waits=view.waits or ((blocked,) if blocked else ()),
        history=tuple(to_builtins(change) for change in record.history),
        kept_on=kept_on,
    )
