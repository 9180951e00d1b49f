"""Power drivers: they power a host on and off, and report its power state.

`port` defines the interface and its errors. `factory` builds the driver of each declared host. `command` runs programs
of the operator, `http` sends signed webhooks, `libcloud` calls a cloud provider, `wol` sends Wake-on-LAN packets, and
`relay` forwards calls to a relay on the host's network. `libcloud` is imported only if it is configured, because
apache-libcloud is an optional dependency.

Drivers import `edge.core` and `edge.outbound`, and nothing else of `edge.power`.
"""
