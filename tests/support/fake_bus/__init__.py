"""The bus without a broker: connections share one MemoryBroker. It passes the suite that the real one passes."""

from tests.support.fake_bus.broker import FakeBroker, FakeBus

__all__ = ["FakeBroker", "FakeBus"]
