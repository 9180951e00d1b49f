"""The ports of `bus.interface` over NATS JetStream.

Bottom to top: `errors` maps foreign errors; `requests` and `connection` are one connection that reconnects;
`jetstream` is the API client and the ack protocol; `ordered_consumer` reads a stream in order; `topology` declares all
streams, buckets and consumers; one adapter for each port uses them. `codec`, `subjects`, `feed_resume` and `users` are
pure and import no nats.

Only `bus.open`, `bus.server`, the fake broker and tests import it; it imports nothing from `bus.server`.
Start with `topology`: it shows what the broker holds.
"""
