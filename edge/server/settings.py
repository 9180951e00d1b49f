"""What the HTTP server takes from one connection, one address, one key, and from all together."""

from ipaddress import ip_network
from typing import Annotated

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class ServerSettings(Struct, frozen=True):
    """Limits of the HTTP server, as `[server]` in the file.

    `head_bytes` and `head_s`: a request line with its headers, and the trailers of a chunked body. `handshake_s`: a TLS
    handshake. `stall_s`: how long the body of a request may bring nothing. `connections`: in all, less where the
    process may open fewer files. `connections_per_address`: for IPv6, per /64. `proxies`: networks whose connections
    carry many clients, so that no limit per address holds for them; their `X-Forwarded-For` names the client.
    `streams_per_key` and `streams_per_owner`: event streams, over HTTP or a WebSocket, that are open at the same time.
    `sockets_per_key` and `sockets_per_owner`: the same of the gateway, where all sockets of an owner share one stream.
    """

    head_bytes: Annotated[int, Meta(ge=1024)] = 32 * 1024
    head_s: Seconds = 10.0
    handshake_s: Seconds = 10.0
    stall_s: Seconds = 120.0
    connections: Count = 8192
    connections_per_address: Count = 256
    proxies: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    streams_per_key: Count = 200
    streams_per_owner: Count = 400
    sockets_per_key: Count = 1000
    sockets_per_owner: Count = 2000

    def __post_init__(self) -> None:
        for network in self.proxies:
            ip_network(network)  # ValueError names it
