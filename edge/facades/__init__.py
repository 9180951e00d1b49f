"""Facades: the protocols of other products, translated into native calls.

`gateway` speaks the WebSocket envelope v1.0, `heygem` the HTTP API of a bare HeyGem server, and `runpod` the
serverless API of RunPod. A facade may use everything in `edge` below it, but no other facade, and it keeps its own
state. Only the composition root (`edge.app`, `edge.container`, `edge.process`, `edge.settings`) imports facades. To
add one, write a module or a package with a function that returns a Litestar `Router`, and register it in `edge.app`.
"""
