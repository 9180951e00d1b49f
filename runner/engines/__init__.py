"""Container engines: where jobs run.

Start reading at `port`: the calls that the rest of the runner uses, its values and its errors. Two engines implement
the port. `docker` runs jobs in containers (`docker_container_config` and `docker_replies` are its pure parts).
`process` runs them as child processes, each beside a shim (`process_shim`, a program of its own) that keeps a state
folder (`process_job`).

`selection` decides which engine a host uses, and checks a runner that is in a container itself. Only `selection` and
the CLI name a concrete engine; everything else imports `port`. One contract suite tests both engines and the fake of
the tests.
"""
