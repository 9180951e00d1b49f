"""Why a scheduled or queued job waits, and for which hosts: from the job, its hosts and the power controller."""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from edge.core.clock import Clock
from edge.hosts.endpoints import EndpointRegistry
from edge.hosts.registry import HostRegistry, WakeForecast
from schemas.host import HostHeartbeat, ImageStatus, VolumeStatus
from schemas.installation import Pause
from schemas.job import Job
from schemas.status import WaitReason, most_relevant_reason

# A host reports these for some seconds after the pause has ended. Before that, this edge knows more of the pause.
ENDED_PAUSES = frozenset({WaitReason.ENDPOINT_PAUSED, WaitReason.HOST_IN_MAINTENANCE})

LACKING = frozenset({WaitReason.GPU_NONE, WaitReason.REQUIREMENT_UNMET})  # what another host may have


_Downloads = Iterable[ImageStatus | VolumeStatus]


def _pulls(heartbeat: HostHeartbeat) -> _Downloads:
    return (image for image in heartbeat.images if image.state == "pulling")


def _fills(heartbeat: HostHeartbeat) -> _Downloads:
    return (volume for volume in heartbeat.volumes if volume.state == "filling")


def _failed_fills(heartbeat: HostHeartbeat) -> _Downloads:
    return (volume for volume in heartbeat.volumes if volume.state == "missing")


def _no_downloads(_: HostHeartbeat) -> _Downloads:
    return ()


_DOWNLOADS: Mapping[WaitReason, Callable[[HostHeartbeat], _Downloads]] = {
    WaitReason.IMAGE_PULLING: _pulls,
    WaitReason.VOLUME_FILLING: _fills,
    WaitReason.VOLUME_MISSING: _failed_fills,
}


class WakeForecasts(Protocol):
    """The forecasts of the power controller for hosts that are not online."""

    def wake_forecast(self, endpoint: str) -> WakeForecast | None:
        """Return why jobs of `endpoint` wait for a host, which one, and how long its wake takes. None: no forecast."""
        ...

    def has_driver(self, host: str) -> bool:
        """Return whether `host` has a power driver, so that it can be powered on from here."""
        ...


class WaitReasons:
    """Derives the wait reason of a job, and the facts about its hosts that messages and forecasts need."""

    def __init__(self, hosts: HostRegistry, endpoints: EndpointRegistry, power: WakeForecasts, clock: Clock) -> None:
        self._hosts = hosts
        self._endpoints = endpoints
        self._power = power
        self._clock = clock

    def wait_reason(self, job: Job, *, in_window: bool) -> WaitReason:
        """Return the most relevant reason why a waiting job waits.

        `in_window`: whether the job is in its owner's publish window, or may enter it at once.
        """
        now = self._clock()
        conditions = {
            WaitReason.AWAITING_INPUT: bool(job.missing),
            WaitReason.FETCHING_INPUT: bool(job.pending_urls),
            WaitReason.NOT_BEFORE: job.not_before is not None and job.not_before > now,
            WaitReason.BACKOFF: job.backoff_until is not None and job.backoff_until > now,
            WaitReason.ENDPOINT_PAUSED: self.endpoint_pause(job.endpoint) is not None,
            WaitReason.QUOTA: not in_window,
            WaitReason.BEHIND: True,
        }
        reasons = {reason for reason, holds in conditions.items() if holds}
        host_reason = self._host_wait_reason(job.endpoint)
        return most_relevant_reason(reasons | ({host_reason} if host_reason else set())) or WaitReason.BEHIND

    def _host_wait_reason(self, endpoint: str) -> WaitReason | None:
        """Return why no host can start the endpoint now, or None if one can.

        Of several online hosts, the reason of the one closest to starting it. GPU_NONE and REQUIREMENT_UNMET only if no
        other host offers the endpoint, because another host may have what this one lacks. HOST_IN_MAINTENANCE only if
        no other host offers the endpoint or may be woken for it.
        """
        offering, has_maintenance = self._available_hosts(endpoint), self._has_host_in_maintenance(endpoint)
        heartbeats = self._hosts.heartbeats
        reasons = {host: _unschedulable_reason(heartbeats[host], endpoint) for host in offering if host in heartbeats}
        unreadable = {host for host in offering - reasons.keys() if self._hosts.is_online(host)}
        if None in reasons.values() or unreadable:
            return None
        able = [reason for reason in reasons.values() if reason is not None and reason not in LACKING]
        if able:
            return max(able, key=list(WaitReason).index)
        forecast, offline = self._power.wake_forecast(endpoint), offering - reasons.keys()
        if forecast is not None:
            return forecast.reason
        if not offline and has_maintenance:
            return WaitReason.HOST_IN_MAINTENANCE
        if not offline:
            lacking = most_relevant_reason({reason for reason in reasons.values() if reason is not None})
            has_unmet = bool(self._endpoints.unmet(endpoint))
            return lacking or (WaitReason.REQUIREMENT_UNMET if has_unmet else WaitReason.NO_HOST)
        return WaitReason.HOST_OFF if any(map(self._power.has_driver, offline)) else WaitReason.HOST_OFF_UNSWITCHED

    def _able_hosts(self, endpoint: str) -> frozenset[str]:
        """Return the hosts that offer `endpoint` and meet its requirements."""
        return self._endpoints.hosts_offering(endpoint) - self._endpoints.unmet(endpoint).keys()

    def _available_hosts(self, endpoint: str) -> frozenset[str]:
        """Return the hosts that can run `endpoint` and are not in maintenance."""
        return self._able_hosts(endpoint) - self._hosts.pauses.hosts_in_maintenance

    def _has_host_in_maintenance(self, endpoint: str) -> bool:
        return not self._able_hosts(endpoint).isdisjoint(self._hosts.pauses.hosts_in_maintenance)

    def unmet_requirements(self, endpoint: str) -> dict[str, str]:
        """Return the hosts that do not meet the requirements of `endpoint`, each with what it lacks."""
        return self._endpoints.unmet(endpoint)

    def endpoint_pause(self, endpoint: str) -> Pause | None:
        """Return the pause of `endpoint`; None if it is not paused."""
        return self._hosts.pauses.of_endpoint(endpoint)

    def download(self, endpoint: str, reason: WaitReason) -> ImageStatus | VolumeStatus | None:
        """Return the image or volume that jobs of `endpoint` wait for with this reason, as a host fetches it.

        The furthest of several; None if no host fetches one. For VOLUME_MISSING: a volume that could not be fetched.
        """
        downloads = _DOWNLOADS.get(reason, _no_downloads)
        heartbeats = self._hosts.heartbeats.values()
        found = [one for heartbeat in heartbeats for one in downloads(heartbeat) if endpoint in one.endpoints]
        return max(found, key=lambda one: one.percent or 0, default=None)

    def offline_host_names(self, endpoint: str) -> str:
        """Return the names of the hosts that offer `endpoint` and are offline, for a message."""
        return ", ".join(sorted(host for host in self._available_hosts(endpoint) if not self._hosts.is_online(host)))

    def reason_blocked(self, endpoint: str) -> str:
        """Return why there is no machine for the host that jobs of `endpoint` wait for; "" if nothing said so."""
        forecast = self._power.wake_forecast(endpoint)
        return forecast.blocked if forecast else ""

    def usual_wake_s(self, endpoint: str) -> float | None:
        """Return the usual seconds of the wake that jobs of `endpoint` wait for; None: not known."""
        forecast = self._power.wake_forecast(endpoint)
        return forecast.wake_s if forecast else None

    def remaining_wake_s(self, endpoint: str) -> float | None:
        """Return the seconds of that wake that are still to come, as far as can be predicted; None: not known."""
        forecast = self._power.wake_forecast(endpoint)
        return forecast.remaining_s if forecast else None

    def candidate_hosts(self, endpoint: str) -> tuple[str, ...]:
        """Return the hosts that will run jobs of `endpoint`: the online ones, else the one to be woken, else all."""
        offering = sorted(self._available_hosts(endpoint) or self._endpoints.hosts_offering(endpoint))
        online = tuple(filter(self._hosts.is_online, offering))
        forecast = None if online else self._power.wake_forecast(endpoint)
        return online or ((forecast.host,) if forecast else tuple(offering))


def _unschedulable_reason(heartbeat: HostHeartbeat, endpoint: str) -> WaitReason | None:
    if heartbeat.draining:
        return WaitReason.PAUSED
    reason = heartbeat.unschedulable.get(endpoint)
    if reason is None or reason in ENDED_PAUSES:
        return None
    return WaitReason(reason) if reason in set(WaitReason) else WaitReason.PAUSED
