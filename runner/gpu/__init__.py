"""The GPUs of this host: their state, their health, and which container gets which GPU.

Start reading at `allocator`: it assesses every reading, reserves GPUs for containers and meters their use. The rules in
`health` and `placement` are pure. `monitor` supervises the NVML child process (`nvml`), so that a driver that hangs
cannot block the runner; the two talk by messages of `schemas.gpu`. `process_owner` tells our own GPU processes from
foreign ones.

Everything above the engines may import this package. It does not know engines, jobs or the broker.
"""
