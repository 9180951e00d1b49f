"""The shared vocabulary: frozen Structs and pure functions, without I/O.

Everything that is stored in the broker or sent between processes is defined here, with the rules that belong to it:
`lifecycle` is the state machine of a job, and decides what follows a failure. `container_protocol` is the contract
between a runner and a container. `settings_schema` describes settings, and `settings_loader` reads them.

A field that was renamed keeps its stored name with `field(name=…)`; tests/upgrade decodes old records.
May import the standard library and msgspec only. Everybody may import it.
Start with `job`, then `events`, then `lifecycle`.
"""
