"""Webhooks: signed HTTP messages about the states of jobs, with retries over three days.

Start at `dispatcher`. It reads every job state, enqueues a delivery for each job that has a webhook, and sends the
deliveries of the broker's queue. `sender` makes one attempt. `retry_policy` decides when to try again and holds the
circuit breaker of each receiver; it is pure. `delivery_log` is the log that `GET /v1/jobs/{id}/deliveries` shows.
`secrets` holds signing secrets, disabled receivers and the settings.

May import `edge.core`, `edge.outbound`, `edge.index` and `edge.jobs`. Imported by `edge.http` and the container.
"""
