"""Which hosts a job may reach, and at which addresses. A name is resolved once, and all its addresses are checked."""

import re
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence

import anyio

from schemas.addresses import Address, ends_in_number, parse_ip_literal, refusal_reason

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

ADDRESS_LIMIT = 4  # addresses tried for one name
ALLOWED_PREFIX = "*."
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\Z")


class EgressRefused(Exception):
    """A job may not reach this host; the message says why."""


async def resolve_host(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a name in the order of the system's resolver. Raises OSError."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[4][0]) for place in found))


class EgressRules:
    """The rules of this host. `denied`: hosts that no job may reach although they may be public: broker and edge."""

    def __init__(self, denied: Collection[str] = (), resolve: Resolver = resolve_host) -> None:
        self._denied = frozenset(_normalize(host) for host in denied)
        self._resolve = resolve

    async def check(self, host: str, port: int, allow: Collection[str]) -> list[Address]:
        """Return the addresses to connect to, in order.

        `allow`: the names of the endpoint; none: every public host. One refused address of a name refuses the name.
        Raises EgressRefused, and OSError if the name cannot be resolved.
        """
        name = _normalize(host)
        literal = parse_ip_literal(name)
        if literal is None and (ends_in_number(name) or not _HOST_NAME.match(name)):
            raise EgressRefused(f"{name[:100]} is neither a name nor an address in its usual form")
        if allow and (literal is not None or not is_allowed(name, allow)):
            raise EgressRefused(f"{name} is not in `allow` of the endpoint, which has {', '.join(allow)}")
        if name in self._denied:
            raise EgressRefused(f"{name} belongs to Lamplighter itself")
        found = [literal] if literal is not None else await self._find_addresses(name, port)
        denied = await self._denied_addresses() if self._denied else frozenset()
        for address in found:
            if reason := refusal_reason(address):
                raise EgressRefused(f"{name} is {reason} ({address})")
            if address in denied:
                raise EgressRefused(f"{name} belongs to Lamplighter itself ({address})")
            if is_own_address(address):
                raise EgressRefused(f"{name} is this host itself ({address})")
        return found[:ADDRESS_LIMIT]

    async def _find_addresses(self, name: str, port: int) -> list[Address]:
        try:
            answers = await self._resolve(name, port)
        except UnicodeError as error:
            raise OSError(f"{name} cannot be resolved: {error}") from error
        found: list[Address] = []
        for answer in answers:
            address = parse_ip_literal(answer)
            if address is None:  # an IPv6 address with a zone: link-local
                raise EgressRefused(f"{name} resolves to an address of one link ({answer})")
            found.append(address)
        if not found:
            raise OSError(f"{name} has no address")
        return found

    async def _denied_addresses(self) -> frozenset[Address]:
        found: set[Address] = set()
        for host in self._denied:
            literal = parse_ip_literal(host)
            try:
                answers = [literal] if literal else [parse_ip_literal(one) for one in await self._resolve(host, 0)]
            except (OSError, UnicodeError):  # a name without an address protects nothing
                continue
            found.update(address for address in answers if address is not None)
        return frozenset(found)


def is_allowed(name: str, allow: Collection[str]) -> bool:
    """Return whether a list of names has `name`: `*.example.com` has every name below example.com."""
    for entry in allow:
        pattern = entry.lower()
        if pattern == name or (pattern.startswith(ALLOWED_PREFIX) and name.endswith(pattern[1:])):
            return True
    return False


def is_own_address(address: Address) -> bool:
    """Return whether this machine has the address. Its kernel then sends from the address that it sends to."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))  # sends nothing
            return parse_ip_literal(str(probe.getsockname()[0])) == address
    except OSError:  # no route: a connection fails too
        return False


def _normalize(host: str) -> str:
    return host.strip("[]").lower().removesuffix(".")
