"""Files of a job: inputs from the edge to the host, outputs from the host to the edge.

Start reading at `port`: the calls that an execution uses, and their errors. `client` speaks HTTP to the edge's asset
routes. `cache` keeps inputs by digest, so that an input is fetched once however many jobs use it. `volume_source`,
`volume_store` and `container_folders` have what containers get besides: volumes, caches and secrets.

Everything above the engines may import this package. It does not know jobs, the queue or the engine.
"""
