"""The host beside its jobs: what it reports to the edge, and which orders it follows.

`heartbeat` publishes what runs here and what this host can do. `engine_monitor` probes the engine. `orders` follows the
edge's power orders and an operator's pauses, and `deadman` powers the machine off when edge and broker are gone.
`enrollment` joins an installation with a token and notices a removal. `gpu_probe` tests a GPU that erred.

Only `lifecycle`, `app` and the CLI import this package.
"""
