"""Hosts: which machines exist, what they offer, and how a new one is enrolled.

Start at `registry`. It polls heartbeats and offers, tells which host is online or gone, and keeps pauses and samples
of GPUs. `endpoints` knows which endpoints hosts offer, and checks their input schemas. `enrollment` gives a new host a
key and a broker account, and takes both back. `host_tokens` lets many hosts join with one token.

Power states are decided in `edge.power`; here a host is only online or not.
May import `edge.core`, `edge.index` and `edge.owners`. Imported by `edge.assets`, `edge.jobs` and all packages above.
"""
