"""The bus without a broker: connections share one MemoryBroker. It passes the suite that the real one passes."""

from bus.memory.broker import MemoryBroker, MemoryBus

__all__ = ["MemoryBroker", "MemoryBus"]
