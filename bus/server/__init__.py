"""A nats-server of our own: `process` runs it as a child, `config` renders nats.conf and its accounts.

`process` also writes the accounts of enrolled hosts and makes the broker read them. The rights of each user are data in
`bus.nats.topology`.

`lamplighter up` and `backup`, the edge (for enrollment and TLS) and tests import it. Start with `config`, which
explains the accounts.
"""
