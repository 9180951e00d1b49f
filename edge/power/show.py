"""What people see of a host's power: state, history, why a job waits for it, and for how long."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from statistics import median
from typing import NamedTuple

from msgspec import to_builtins
from msgspec.structs import replace

from edge.power.cases import held_by
from schemas.host import HostView
from schemas.power import PowerRecord, PowerState, Provider
from schemas.reasons import Reason

NOTICES: Mapping[PowerState, str] = {
    PowerState.WAKING: "host_waking",
    PowerState.BLOCKED: "host_blocked",
    PowerState.FAULT: "host_fault",
}

REASONS: Mapping[PowerState, Reason] = {
    PowerState.OFF: Reason.HOST_OFF,
    PowerState.WAKING: Reason.HOST_WAKING,
    PowerState.STOPPING: Reason.HOST_OFF,
    PowerState.BLOCKED: Reason.HOST_BLOCKED,
    PowerState.FAULT: Reason.HOST_FAULT,
}

# Of several hosts the one nearest to taking the job speaks.
NEAREST = (Reason.HOST_BOOTING, Reason.HOST_WAKING, Reason.HOST_OFF, Reason.HOST_BLOCKED, Reason.HOST_FAULT)


class Prospect(NamedTuple):
    """Why work waits for a host, which, the seconds it usually takes to wake (None: not measured), and those left."""

    reason: Reason
    host: str
    wake_s: float | None
    left_s: float | None


def reason(record: PowerRecord, word: Provider) -> Reason | None:
    """Why a job waits for the host; None while it is up."""
    if record.state is PowerState.WAKING and word is Provider.ON:
        return Reason.HOST_BOOTING
    return REASONS.get(record.state)


def wake_median_s(record: PowerRecord) -> float | None:
    """Seconds from the start call to the first heartbeat, as measured."""
    return median(record.wakes) if record.wakes else None


def wake_left_s(record: PowerRecord, at: datetime) -> float | None:
    """Seconds until the first heartbeat: the usual wake, less what has passed since the start call."""
    usual = wake_median_s(record)
    if usual is None or record.state is not PowerState.WAKING or record.call is None:
        return usual
    passed_s = max(0.0, (at - record.call.at).total_seconds())  # the calendar may have been set back since
    return max(0.0, usual - passed_s)


def nearest(prospects: Iterable[Prospect]) -> Prospect | None:
    """The one to tell."""
    return min(prospects, key=lambda prospect: (NEAREST.index(prospect.reason), prospect.host), default=None)


def shown(host: str, seen: HostView | None, record: PowerRecord, at: datetime) -> HostView:
    """The host as `/v1/hosts` shows it; `seen` is what its own word makes of it, None when it never spoke."""
    hold = held_by(record, at)
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
