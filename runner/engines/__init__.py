"""Where containers run: one port, a Docker engine, a process engine and a fake, one contract suite for all three."""
