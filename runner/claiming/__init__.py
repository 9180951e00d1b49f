"""Claims from the queue, recovery after a restart, and warm containers: everything that decides what starts here.

Start reading at `loop.ClaimLoop.run`: it fetches a message when a slot is free, and `loop.decide` (pure) chooses the
step by the job's record. `schedulability` says which endpoints can start now. `recovery` deals with the containers that
a previous runner process left. `warm_pool` keeps containers that wait for a job. `images` and `volumes` bring to the
host what endpoints need, ahead of need.

Only `trial`, `host` and `lifecycle` import this package.
"""
