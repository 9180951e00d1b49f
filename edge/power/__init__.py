"""Power control: hosts are powered on for waiting jobs and off when they are idle.

Start at `controller`: observe, decide, write the record by compare-and-set, and call the driver if this edge wrote it.
The rules are pure. `state_machine` has the table of states and applies it to one record, and `conditions` holds the
conditions that the table names. `scale_rule` decides how many hosts the pools need, and which.

`observation` reads what the rules judge by, and `host_facts` turns it into a plan and the facts of each host.
`driver_calls` makes calls to power drivers, and `views` shows the result to clients. `drivers` implements the port of
a power driver. `provider_programs` is not for the edge: `lamplighter power-driver` calls it.

May import `edge.core`, `edge.outbound`, `edge.index`, `edge.hosts` and `edge.jobs`. Imported by `edge.http`,
`edge.facades` and the container.
"""
