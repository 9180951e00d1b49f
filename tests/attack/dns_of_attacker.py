"""Ask the runner's real rules about names whose DNS answers are an attacker's. Prints one line of JSON.

It runs in network and mount namespaces of its own, where it is the only DNS server: the system's resolver follows its
CNAMEs, and asks it for IPv4 and IPv6 addresses.
"""

import asyncio
import json
import socket
import struct
import sys
import threading
from ipaddress import ip_address

from runner.egress.proxy import EgressRefused, EgressRules

A, CNAME, AAAA = 1, 5, 28
NO_SUCH_NAME = 3
# Name -> the name that it is an alias of, or its addresses.
ZONE: dict[str, str | list[str]] = {
    "chain.example": "hop.example",
    "hop.example": "end.example",
    "end.example": ["10.0.0.7"],
    "good-chain.example": "good.example",
    "good.example": ["93.184.216.34"],
    "v6-private.example": ["93.184.216.34", "fd00::7"],
    "v6-link.example": ["93.184.216.34", "fe80::7"],
    "v6-mapped.example": ["93.184.216.34", "::ffff:127.0.0.1"],
    "v6-loopback.example": ["::1"],
    "to-metadata.example": "metadata.example",
    "metadata.example": ["169.254.169.254"],
    "loop.example": "loop-2.example",
    "loop-2.example": "loop.example",
}


def encode_name(name: str) -> bytes:
    """Return the name as DNS writes it (RFC 1035, 3.1)."""
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"


def answer(query: bytes) -> bytes:
    """Return the whole answer to a query, with every alias on the way."""
    end = query.index(0, 12) + 1
    parts, at = [], 12
    while query[at]:
        parts.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    name, (kind,) = ".".join(parts).lower(), struct.unpack(">H", query[end : end + 2])
    records, found, seen = b"", name in ZONE, set()
    while isinstance(target := ZONE.get(name), str) and name not in seen:
        seen.add(name)
        data = encode_name(target)
        records += encode_name(name) + struct.pack(">HHIH", CNAME, 1, 0, len(data)) + data
        name = target
    count = len(seen)
    for address in map(ip_address, target if isinstance(target, list) else ()):
        if kind == (A if address.version == 4 else AAAA):
            records += encode_name(name) + struct.pack(">HHIH", kind, 1, 0, len(address.packed)) + address.packed
            count += 1
    flags = 0x8580 | (0 if found else NO_SUCH_NAME)
    return query[:2] + struct.pack(">HHHHH", flags, 1, count, 0, 0) + query[12 : end + 4] + records


def serve(server: socket.socket) -> None:
    """Answer queries until the process ends."""
    while True:
        query, sender = server.recvfrom(512)
        server.sendto(answer(query), sender)


async def ask(names: list[str]) -> dict[str, str]:
    """Return what the rules say about each name."""
    told = {}
    for name in names:
        try:
            told[name] = " ".join(map(str, await EgressRules().check(name, 443, (name,))))
        except (EgressRefused, OSError) as error:
            told[name] = f"{type(error).__name__}: {error}"
    return told


server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
threading.Thread(target=serve, args=(server,), daemon=True).start()
sys.stdout.write(json.dumps(asyncio.run(ask(sys.argv[1:]))))
