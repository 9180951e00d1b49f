"""The ports of `bus.interface` over NATS JetStream.

Bottom to top: `replies` matches replies to requests and maps foreign errors; `connection` reconnects; `jetstream` is
the API client, the ack protocol, and the reader of a stream in order; `topology` declares all streams, buckets,
consumers and users; one adapter for each port uses them: `key_value` (STATE and the tables), `streams` (JOBS, AUDIT,
USAGE, DELIVERIES), `feed`, `health` and `snapshots`. `wire` is pure: subjects, message ids and bodies.

`bus.open`, `bus.server`, the enrollment of hosts, the commands `backup` and `up`, and tests import it; everything else
uses the ports. It imports nothing from `bus.server`.
Start with `topology`: it shows what the broker holds.
"""
