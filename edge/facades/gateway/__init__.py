"""The gateway facade: envelope v1.0 over a WebSocket, `/ws` and `/dsp`.

Start with `gateway`, which owns all sockets of one edge. `session` serves one socket: `auth` finds the caller,
`commands` maps message types to functions, and `frames` reads raw frames and queues those to send. `broadcast` reads
the event stream of an owner once for all of the owner's sockets, and `envelopes` builds the frames. `context` holds
what all sockets share. Only `edge.app` and `edge.process` may import this package.
"""
