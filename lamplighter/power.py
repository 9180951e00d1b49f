"""The interface for a power driver in a package of its own.

Such a package names its class in the entry point group `lamplighter.power_drivers`. The edge (or the relay) calls it
with the host's name, the `options` of `[hosts.NAME]`, and the variables that `inherit` names:

    class AcmeDriver(PowerDriver):
        def __init__(self, host: str, options: Mapping[str, Any], environ: Mapping[str, str]) -> None: ...

A driver of which one call reports the states of many hosts is a ClusterPowerDriver.

`start`, `stop`, `state` and `states` run in the event loop of the edge, so they must not block: use `anyio.to_thread`
for a library that does.
"""

from schemas.power import ClusterPowerDriver, NoCapacity, PowerCallFailed, PowerDriver, ReportedPower

__all__ = ["ClusterPowerDriver", "NoCapacity", "PowerCallFailed", "PowerDriver", "ReportedPower"]
