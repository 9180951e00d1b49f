"""The job index: a searchable view of the job records in STATE, for lists, counts and queue positions.

May import `edge.core`; knows no service. `owners`, `assets`, `jobs` and everything above them may import it.
Start reading at `index.JobIndex`.

- `index`: follows STATE, applies its changes in batches, answers queries, notifies subscribers
- `sqlite`: the SQLite file: schema, writes and queries; blocking, called in a thread
- `rows`: the values that the index keeps of a record, deadlines and digests of a job, positions of queued jobs in
  memory, and filters, pages and cursors of lists. Pure

The index is only a cache: it is rebuilt at each start, may lag behind STATE, and no write is decided by it.
"""
