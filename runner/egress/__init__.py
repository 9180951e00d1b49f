"""The way out of jobs whose endpoint has `network = "egress"`: a forward proxy, which is the only thing they can reach.

The network namespace of such a job has a loopback interface and nothing else. A socket listens there, and the runner
accepts its connections from outside (`runner.engines.docker_egress`). `rules` decides which hosts and addresses may be
reached; `proxy` serves CONNECT and plain HTTP requests by these rules, on connections to addresses that it checked.

This package imports `schemas` and nothing else of ours. `runner.engines` imports it. Start with `rules`.
"""
