"""Parts that every package of the edge may use: they know neither jobs nor HTTP.

May import `schemas`, `bus`, `edge.store.port` and `edge.outbound`; every package of `edge` may import it.

- `clock`: time and randomness as parameters
- `concurrency`: a bounded queue between tasks, a bounded number of calls at a time, and what becomes of exceptions:
  errors of the broker and the store are problems for clients
- `installation`: what all edges of an installation share: constants, and leases for work that one edge does at a time
- `metrics`: the counters and histograms of this process
- `validation`: decode a request, check a job's input against a JSON Schema, within a step budget
- `messages`: texts for users, in English and Chinese; `record_texts_zh` and `refusal_texts_zh` have the Chinese
  of whole sentences
- `clients`: who clients without a key are, and limits for them
"""
