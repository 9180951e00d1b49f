"""The way out of jobs whose endpoint has `network = "egress"`: a forward proxy, which is the only thing they can reach.

The network namespace of such a job has a loopback interface and nothing else. A socket listens there, and the runner
accepts its connections from outside (`runner.engines.docker_egress`). `proxy` has the rules which hosts and addresses
may be reached. It serves CONNECT and plain HTTP requests by them, on connections to addresses that it checked.

This package imports `schemas` and nothing else of ours. `runner.engines` imports it. Start with `proxy`.
"""
