"""What people see of a host's power: state, history, why a job waits for it, and for how long."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from statistics import median

from msgspec import to_builtins
from msgspec.structs import replace

from edge.hosts.registry import WakeForecast
from edge.power.conditions import active_override
from schemas.host import HostView
from schemas.power import PowerRecord, PowerState, ReportedPower
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

# Of several hosts the one nearest to taking the job speaks.
REASONS_NEAREST_FIRST = (
    WaitReason.HOST_BOOTING,
    WaitReason.HOST_WAKING,
    WaitReason.HOST_OFF,
    WaitReason.HOST_BLOCKED,
    WaitReason.HOST_FAULT,
)


def wait_reason(record: PowerRecord, word: ReportedPower) -> WaitReason | None:
    """Why a job waits for the host; None while it is up."""
    if record.state is PowerState.WAKING and word is ReportedPower.ON:
        return WaitReason.HOST_BOOTING
    return WAIT_REASONS.get(record.state)


def wake_median_s(record: PowerRecord) -> float | None:
    """Seconds from the start call to the first heartbeat, as measured."""
    return median(record.wake_durations_s) if record.wake_durations_s else None


def wake_left_s(record: PowerRecord, at: datetime) -> float | None:
    """Seconds until the first heartbeat: the usual wake, less what has passed since the start call."""
    usual = wake_median_s(record)
    if usual is None or record.state is not PowerState.WAKING or record.call is None:
        return usual
    passed_s = max(0.0, (at - record.call.at).total_seconds())  # the calendar may have been set back since
    return max(0.0, usual - passed_s)


def nearest_forecast(prospects: Iterable[WakeForecast]) -> WakeForecast | None:
    """The one to tell."""
    return min(
        prospects, key=lambda prospect: (REASONS_NEAREST_FIRST.index(prospect.reason), prospect.host), default=None
    )


def host_view(host: str, seen: HostView | None, record: PowerRecord, at: datetime) -> HostView:
    """The host as `/v1/hosts` shows it; `seen` is what its own word makes of it, None when it never spoke."""
    hold = active_override(record, at)
    view = seen or HostView(id=host, state=record.state)
    up = record.state is PowerState.ONLINE and seen is not None
    return replace(
        view,
        state=view.state if up else record.state,
        since=record.since,
        wake_median_s=wake_median_s(record),
        hold=None if hold is None else to_builtins(hold),
        history=tuple(to_builtins(change) for change in record.history),
    )
