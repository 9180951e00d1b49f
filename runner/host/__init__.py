"""The host beside its jobs: what it reports to the edge, and which orders it follows.

`presence` publishes what runs here and what this host can do. It follows the edge's power orders and an operator's
pauses, and powers the machine off when edge and broker are gone. `watches` repeats the checks of this host: of the
engine, of a GPU that erred, of the folders of endpoints. `enrollment` joins an installation with a token and notices a
removal. `health_file` is what a container looks at; the relay renews one too.

Only `lifecycle`, `app` and the CLI import this package.
"""
