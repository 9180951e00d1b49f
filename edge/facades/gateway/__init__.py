"""The gateway facade: envelope v1.0 over a WebSocket, `/ws` and `/dsp`.

Start with `gateway`, which owns all sockets of one edge and serves each of them. `connection` finds the caller, reads
raw frames and queues those to send. `commands` maps message types to functions. `envelopes` builds the frames, and
holds what all sockets share: it reads the event stream of an owner once for all of the owner's sockets. Only
`edge.app` and `edge.process` may import this package.
"""
