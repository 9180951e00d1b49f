"""What there is beside jobs: endpoints, hosts, their power, and what was used."""

from typing import Any

from msgspec import Struct

from lamplighter.wire import Call, fetch, quoted, reader
from schemas.host import HostView
from schemas.usage import UsageReport


class Hosts(Struct, frozen=True):
    """Every host that the edge knows."""

    hosts: list[HostView]


def endpoint(name: str) -> Call[Any]:
    """One endpoint, its input schema with it."""
    return fetch(f"/v1/endpoints/{quoted(name)}")


def hosts() -> Call[Hosts]:
    """List hosts."""
    return Call(method="GET", path="/v1/hosts", read=reader(Hosts))


def power(host: str, want: str, until: str | None) -> Call[HostView]:
    """Hold a host `on` or `off`, or leave it to the law: `auto`."""
    body = {"want": want, **({"until": until} if until else {})}
    return Call(method="POST", path=f"/v1/hosts/{quoted(host)}/power", read=reader(HostView), body=body)


def usage(since: str | None, until: str | None, owner: str | None) -> Call[UsageReport]:
    """What was used between two times (RFC 3339)."""
    given = (("from", since), ("to", until), ("owner", owner))
    params = tuple((name, value) for name, value in given if value is not None)
    return Call(method="GET", path="/v1/usage", read=reader(UsageReport), params=params)
