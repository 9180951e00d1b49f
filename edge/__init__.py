"""The edge: the HTTP server that accepts jobs, shows their state, and controls the power of hosts.

Any number of edges share one broker, which holds the jobs. An edge can be replaced: its index is rebuilt at start.
Packages are layers, lowest first, and a package imports only from lower ones (tests/architecture.py enforces it):

    store, outbound, console, reference < core < index < owners < hosts < assets < jobs
    < usage, webhooks, power, deletion < notify, record_metrics < http < server, facades < settings < domain
    < container, app < process

To follow a request, start at `http/routes/jobs.py`. To follow a start, start at `process.serve`. `container` and
`domain` build all services, and `app` lists all routes. Only `lamplighter` and tests import this package.
"""
