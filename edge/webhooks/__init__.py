"""Webhooks: signed HTTP messages about the states of jobs, with retries over two to three days.

Start at `dispatcher`. It reads every job state, enqueues a delivery for each webhook of the job and of its owner, and
sends the deliveries of the broker's queue. Its `WebhookSender` makes one attempt, decides when to try again, and holds
the circuit breaker of each receiver. `owner_webhooks` holds the webhooks of owners, signing secrets, disabled
receivers, the settings, and the log that `GET /v1/jobs/{id}/deliveries` shows.

May import `edge.core`, `edge.outbound`, `edge.index` and `edge.jobs`. Imported by `edge.http` and the container.
"""
