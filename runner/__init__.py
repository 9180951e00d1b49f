"""The runner: claims jobs from the queue and runs each in a container on this host.

Start reading at `lifecycle.run_lifecycle` (recover, claim, drain), then `claiming.loop.ClaimLoop.run`, then
`execution.execution.Execution.run`, which is one job from its inputs to its record.

`app` is the composition root. `context` holds what every part needs, and the retry during an outage. `slots` counts
the containers that may run here. Packages from bottom to top: `egress` (the way out of jobs), `engines` (containers),
`assets` (files of a job), `gpu`, `execution` (one attempt), `claiming` (what may start here), `trial` (one job without
a broker), `host` (heartbeat, power, enrollment). A package imports only packages before it, plus `schemas` and `bus`.
Only the CLI imports the runner.
"""
