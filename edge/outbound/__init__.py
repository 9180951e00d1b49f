"""HTTP requests to URLs that clients name: inputs by URL, and webhooks.

Read `ssrf_guard` first. `guarded_client` returns the only HTTP client that may be used for such a URL: its transport
resolves the host once, checks every address, and connects to an address that it checked.

`url_policy` holds the rules as pure functions: which URLs, hosts and addresses are refused. `download` fetches a file
behind a URL and limits the downloads per owner. `signature` signs webhook messages as Standard Webhooks defines it.

This package imports `schemas` and nothing else of ours. `edge.jobs`, `edge.webhooks` and `edge.power` import it.
"""
