"""`/ws` and `/dsp`: the same gateway under two names."""

from litestar import websocket
from litestar.di import NamedDependency

from edge.auth.keys import OPEN
from edge.facades.gateway.gateway import Gateway
from edge.facades.gateway.wire import AnySocket


@websocket(["/ws", "/dsp"], opt={OPEN: True})
async def gateway_socket(socket: AnySocket, gateway: NamedDependency[Gateway]) -> None:
    """Envelope v1.0. The key comes with the handshake or in the first message."""
    await gateway.serve(socket)


ROUTES = (gateway_socket,)
