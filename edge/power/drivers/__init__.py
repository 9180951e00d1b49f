"""Power drivers: they power a host on and off, and report its power state.

The interface and its errors are in `schemas.power`. `factory` builds the driver of each declared host,
also one that is a class of another package; a new driver gets a row in its table `DRIVER_FACTORIES`.

`generic` runs programs of the operator, sends signed webhooks and Wake-on-LAN packets, and forwards calls to a relay
on the host's network. `libcloud` calls a cloud provider, and `kubernetes` creates and deletes Pods. `libcloud` is
imported only if it is configured, because apache-libcloud is an optional dependency. Slurm and rented boxes have no
driver: a `CommandDriver` runs `lamplighter power-driver`, which uses `edge.power.provider_programs`.

Drivers import `edge.core` and `edge.outbound`, and nothing else of `edge.power`.
"""
