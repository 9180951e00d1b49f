"""Parts that every package of the edge may use: they know neither jobs nor HTTP.

May import `schemas`, `bus`, `edge.store.port` and `edge.outbound`; every package of `edge` may import it.

- `clock`: time and randomness as parameters
- `concurrency`: a bounded queue between tasks, and a bounded number of calls at a time
- `leases`: one edge at a time does a piece of work
- `installation`: constants that all edges of an installation share
- `error_handling`: errors of the broker and the store as problems for clients
- `metrics`: the counters and histograms of this process
- `validation`, `validation_steps`: decode a request, check a job's input against a JSON Schema, within a step budget
- `messages`: texts for users, in English and Chinese
- `signed_urls`: URLs that authorise by a signature; `client_throttle`: limits for clients without a key
"""
