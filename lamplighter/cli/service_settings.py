"""The settings files that `install` writes: every line is a comment, so the defaults hold until somebody edits it."""

from pathlib import Path

import msgspec

from lamplighter.cli.service_units import Role

_HEADER = """\
# Settings of the Lamplighter {role}. Remove the # in front of a line to set it, then restart the service:
# {restart}
# `lamplighter install` and an upgrade keep this file as it is.
"""

_EDGE = """
# log_level = "info"                  # debug, info, warning, error
# retention_days = 30.0               # how long ended jobs and their files are kept
# max_asset_bytes = 21474836480       # the largest file that a client may upload

# [quotas]                            # of every owner; 0 is no limit
# waiting = 0
# running = 0
# bytes = 0
# submits_per_minute = 0

# [cors]
# origins = ["https://app.example.com"]   # web pages that may call the API

# [outbound]
# allow = []                          # private addresses that input URLs and webhooks may reach

# [hosts.gpu-1]                       # a host that the edge powers on and off: docs/power.md
# driver = "command"
# on = ["wakeonlan", "a4:bb:6d:00:11:22"]
# state = ["ping", "-c1", "-W1", "192.0.2.10"]
"""

_RUNNER = """
# Folders of images. Each folder in them with an endpoint.toml is something that this host can run.
endpoints = {endpoints}

# engine = "docker"                   # auto decides once, at the first start: Docker if this machine has it
# slots = 1                           # jobs that run at the same time
# grace_s = 10.0                      # seconds for running jobs to end when the service stops
# cache_bytes = 21474836480           # input files that are kept for the next job
# poweroff = ["systemctl", "poweroff"]    # how the edge powers this machine off; needs the right to do so
# log_level = "info"                  # debug, info, warning, error

# A host that joined with a token (`install runner --join`) needs neither of these:
# host = "gpu-1"
# [broker]
# url = "nats://127.0.0.1:4222"
# password = ""
# [edge]
# url = "http://127.0.0.1:8000"
# key = ""
"""

_RELAY = """
# log_level = "info"                  # debug, info, warning, error

# [relay]                             # needed without `install relay --join`: the edges, and a key for relays
# urls = ["https://gpu.example.com"]
# key = ""

# [hosts.pc]                          # needed: each host of this network, with the driver that switches it
# driver = "wol"
# mac = "a4:bb:6d:00:11:22"
# broadcast = "192.0.2.255"
"""

_BODIES = {Role.EDGE: _EDGE, Role.RUNNER: _RUNNER, Role.RELAY: _RELAY}


def render_settings(role: Role, endpoints: Path, *, is_system: bool) -> str | None:
    """Return the settings file of the role, None for one that has none.

    `endpoints`: the folder of images that a runner offers.
    """
    if role not in _BODIES:
        return None
    restart = f"{'sudo systemctl' if is_system else 'systemctl --user'} restart lamplighter-{role}"
    folders = msgspec.json.encode([str(endpoints)]).decode()
    return _HEADER.format(role=role, restart=restart) + _BODIES[role].replace("{endpoints}", folders)
