"""The message broker behind ports: job records, queues, the feed and small tables.

`interface` holds the ports (`health` one of them), their values and their errors. Its users depend on it alone. `open`
gives a `Bus` over a real broker. `compare_and_set` changes records and rows beside other writers. `nats/` holds the
adapters, the only code that imports nats-py; `server/` runs and configures a nats-server. `secret_files` and `notifier`
are small tools that the edge and the runner share.

May import `schemas`. `edge`, `runner` and `lamplighter.cli` may import it.
Start with `interface`, then `open`, then `nats/connection`.
"""
