"""A power driver of a simulated machine, whose boot and shutdown the test finishes."""

from collections.abc import Collection, Mapping

from anyio.lowlevel import checkpoint

from schemas.power import ClusterPowerDriver, NoCapacity, PowerCallFailed, ReportedPower


class FakeCluster:
    """A cluster of simulated machines. `looks`: the hosts of each call for their states, in order."""

    def __init__(self) -> None:
        self.machines: dict[str, FakePowerDriver] = {}
        self.looks: list[set[str]] = []


class FakePowerDriver(ClusterPowerDriver):
    """A simulated machine. `slow`: it stays starting or stopping until `finish_transition`. `calls`: in order."""

    def __init__(
        self, *, can_report_state: bool = True, slow: bool = False, cluster: FakeCluster | None = None, host: str = ""
    ) -> None:
        self._can_report_state = can_report_state
        self._slow = slow
        self._cluster = cluster
        if cluster is not None:
            cluster.machines[host] = self
        self.power = ReportedPower.OFF
        self.calls: list[tuple[str, str]] = []
        self.sold_out = 0
        self.broken = False

    @property
    def can_report_state(self) -> bool:
        return self._can_report_state

    @property
    def cluster(self) -> FakeCluster | None:
        return self._cluster

    async def start(self, call_id: str) -> None:
        await self._record_call("start", call_id)
        if self.sold_out:
            self.sold_out -= 1
            raise NoCapacity("no machine is free: the call is repeated")
        if self.power not in {ReportedPower.ON, ReportedPower.STARTING}:
            self.power = ReportedPower.STARTING if self._slow else ReportedPower.ON

    async def stop(self, call_id: str) -> None:
        await self._record_call("stop", call_id)
        if self.power not in {ReportedPower.OFF, ReportedPower.STOPPING}:
            self.power = ReportedPower.STOPPING if self._slow else ReportedPower.OFF

    async def state(self) -> ReportedPower:
        await checkpoint()
        self._check()
        return self.power if self._can_report_state else ReportedPower.UNKNOWN

    async def states(self, hosts: Collection[str]) -> Mapping[str, ReportedPower]:
        if self._cluster is None:
            return {}
        self._cluster.looks.append(set(hosts))
        self._check()
        machines = self._cluster.machines
        return {host: await machines[host].state() for host in hosts if host in machines}

    def finish_transition(self) -> None:
        """End the boot or the shutdown."""
        self.power = {ReportedPower.STARTING: ReportedPower.ON, ReportedPower.STOPPING: ReportedPower.OFF}.get(
            self.power, self.power
        )

    async def _record_call(self, verb: str, call_id: str) -> None:
        await checkpoint()
        self.calls.append((verb, call_id))
        self._check()

    def _check(self) -> None:
        if self.broken:
            raise PowerCallFailed("the driver is broken: repair it")
