"""Power drivers: they power a host on and off, and report its power state.

The interface and its errors are in `schemas.power_driver`. `factory` builds the driver of each declared host; a new
driver gets a row in its table `DRIVER_FACTORIES`.

`command` runs programs of the operator, `http` sends signed webhooks, `libcloud` calls a cloud provider, `wol` sends
Wake-on-LAN packets, `kubernetes` creates and deletes Pods, and `relay` forwards calls to a relay on the host's network.
`installed` loads a class of another package. `libcloud` is imported only if it is configured, because apache-libcloud
is an optional dependency. Slurm and rented boxes have no driver: `command` runs `lamplighter power-driver`, which
uses `edge.power.slurm` and `edge.power.rented`.

Drivers import `edge.core` and `edge.outbound`, and nothing else of `edge.power`.
"""
