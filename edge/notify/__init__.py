"""Notifications: tell operators by mail, chat or webhook when something is wrong, without a Prometheus.

Start at `service`: in each round it reads the facts, decides which conditions hold (`conditions`, pure),
writes what began and ended to the broker's bucket NOTICES, and sends what is pending. One edge at a time does the
latter two, by a lease. `conditions` also has the messages in both languages. `apprise_sender` is the only module that
knows the library. `targets` has the section `[notify]`, and the port to a target.

The names and thresholds of the conditions are in `schemas/installation.py`. To add one, see "Where to add
things" in docs/architecture.md.

May import every package below `edge.http`. Imported by `edge.http` and the container.
"""
