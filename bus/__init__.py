"""The message broker behind ports: job records, queues, the feed and small tables.

`interface` holds the ports (`health` one of them), their values and their errors. Its users depend on it alone. `open`
gives a `Bus` over the broker that `settings` names. `compare_and_set` changes records and rows beside other writers.
`nats/` holds the adapters, the only code that imports nats-py; `server/` runs and configures a nats-server.

The edge and the runner also share what is not about the broker: `input_schema` checks the schema of an endpoint,
`metric_registry` makes the instruments of a process, and `spans` records those of jobs, which `otlp` sends.
`secret_files` and `notifier` are small tools.

May import `schemas`. `edge`, `runner` and `lamplighter.cli` may import it.
Start with `interface`, then `open`, then `nats/connection`.
"""
