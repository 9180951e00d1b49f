"""What befalls the wire between a host and its edge, as iptables' rules on the host's side. Nothing is ever refused:
a packet that is dropped tells nobody, so both ends believe in their connections for as long as they can.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from msgspec import Struct

from tests.e2e.network import Network, run

LOST = 0.05


class Ports(Struct, frozen=True):
    """Where broker and edge listen."""

    broker: int
    edge: int


Rules = Callable[[Ports], list[str]]


def _silence(_: Ports) -> list[str]:
    return ["INPUT -i wire -j DROP", "OUTPUT -o wire -j DROP"]


def _deaf(_: Ports) -> list[str]:
    return ["INPUT -i wire -j DROP"]


def _mute(_: Ports) -> list[str]:
    return ["OUTPUT -o wire -j DROP"]


def _no_broker(ports: Ports) -> list[str]:
    return [f"INPUT -p tcp --sport {ports.broker} -j DROP", f"OUTPUT -p tcp --dport {ports.broker} -j DROP"]


def _no_edge(ports: Ports) -> list[str]:
    return [f"INPUT -p tcp --sport {ports.edge} -j DROP", f"OUTPUT -p tcp --dport {ports.edge} -j DROP"]


def _lossy(_: Ports) -> list[str]:
    chance = f"-m statistic --mode random --probability {LOST} -j DROP"
    return [f"INPUT -i wire {chance}", f"OUTPUT -o wire {chance}"]


FAULTS: Mapping[str, Rules] = MappingProxyType(
    {
        "a partition": _silence,
        "half open: it says and does not hear": _deaf,
        "half open: it hears and is not heard": _mute,
        "no broker, the edge is there": _no_broker,
        "no edge, the broker is there": _no_edge,
    }
)
LOSSY: Rules = _lossy


@contextmanager
def befallen(net: Network, rules: list[str]) -> Iterator[None]:
    """The rules hold while the block runs."""
    for rule in rules:
        run(*net.at_host, "iptables", "-I", *rule.split())
    try:
        yield
    finally:
        for rule in rules:
            run(*net.at_host, "iptables", "-D", *rule.split())
