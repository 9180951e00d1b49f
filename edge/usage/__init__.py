"""Usage: how long hosts were on, what jobs used, and what both cost.

Start at `recorder`. It writes one row to the stream USAGE for each ended round of a job and for each interval in which
a host was on. `report` builds the usage report of a time range from these rows. `cost_allocation` divides the on-time
and the cost of a host among the jobs that ran there; it is pure.

May import `edge.core` and `edge.index`. Imported by `edge.http` and the container.
"""
