"""Webhooks: signed HTTP messages about the states of jobs, with retries over two to three days.

Start at `dispatcher`. It reads every job state, enqueues a delivery for each webhook of the job and of its owner, and
sends the deliveries of the broker's queue. `owner_webhooks` holds the webhooks of owners. `sender` makes one attempt.
`retry_policy` decides when to try again and holds the circuit breaker of each receiver; it is pure. `delivery_log` is
the log that `GET /v1/jobs/{id}/deliveries` shows. `secrets` holds signing secrets, disabled receivers and the settings.

May import `edge.core`, `edge.outbound`, `edge.index` and `edge.jobs`. Imported by `edge.http` and the container.
"""
