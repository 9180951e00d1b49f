"""Faults of the link between a host and its edge, as iptables rules on the host's side.

Packets are dropped, never rejected, so both ends keep their connections for as long as they can.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from msgspec import Struct

from tests.support.namespaces import HostNetwork, run_command

LOSS_SHARE = 0.05


class ServicePorts(Struct, frozen=True):
    """The ports of broker and edge."""

    broker: int
    edge: int


Rules = Callable[[ServicePorts], list[str]]


def _drop_all(_: ServicePorts) -> list[str]:
    return ["INPUT -i wire -j DROP", "OUTPUT -o wire -j DROP"]


def _drop_incoming(_: ServicePorts) -> list[str]:
    return ["INPUT -i wire -j DROP"]


def _drop_outgoing(_: ServicePorts) -> list[str]:
    return ["OUTPUT -o wire -j DROP"]


def _no_broker(ports: ServicePorts) -> list[str]:
    return [f"INPUT -p tcp --sport {ports.broker} -j DROP", f"OUTPUT -p tcp --dport {ports.broker} -j DROP"]


def _no_edge(ports: ServicePorts) -> list[str]:
    return [f"INPUT -p tcp --sport {ports.edge} -j DROP", f"OUTPUT -p tcp --dport {ports.edge} -j DROP"]


def _lossy(_: ServicePorts) -> list[str]:
    chance = f"-m statistic --mode random --probability {LOSS_SHARE} -j DROP"
    return [f"INPUT -i wire {chance}", f"OUTPUT -o wire {chance}"]


FAULTS: Mapping[str, Rules] = MappingProxyType(
    {
        "a partition": _drop_all,
        "half open: it says and does not hear": _drop_incoming,
        "half open: it hears and is not heard": _drop_outgoing,
        "no broker, the edge is there": _no_broker,
        "no edge, the broker is there": _no_edge,
    }
)
LOSSY: Rules = _lossy


@contextmanager
def apply_rules(net: HostNetwork, rules: list[str]) -> Iterator[None]:
    """Apply the rules while the block runs."""
    for rule in rules:
        run_command(*net.at_host, "iptables", "-I", *rule.split())
    try:
        yield
    finally:
        for rule in rules:
            run_command(*net.at_host, "iptables", "-D", *rule.split())
