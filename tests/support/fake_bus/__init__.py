"""The bus without a broker: connections share one FakeBroker. It passes the contract suites of the real one."""

from tests.support.fake_bus.broker import FakeBroker, FakeBus

__all__ = ["FakeBroker", "FakeBus"]
