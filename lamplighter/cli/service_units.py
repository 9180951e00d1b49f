"""The texts that `install` writes: the systemd units, one function for each role, and the settings files.

The settings of a unit besides its program, with their reasons:

- `Type=notify`: `systemctl start` returns, and the watchdog begins, when the process says that it is ready
  (`lamplighter.cli.process_setup.ServiceNotifier`).
- Runner and relay wait without limit for what they need (`TimeoutStartSec=infinity`), so they are ordered after
  multi-user.target, and the boot does not wait for them.
- `KillMode=process` for the runner: its jobs outlive it, and the next runner adopts them. `KillMode=mixed` for the
  edge: `up` stops broker and edge in their order.
- The runner's exit codes 2 and 4 mean that a person has to act, so it is not restarted after them.

Every line of a settings file is a comment, so the defaults hold until somebody edits it.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec
from msgspec import Struct

from lamplighter.cli.context import REFUSED, USAGE

OPEN_FILES_LIMIT = 1_048_576


class Role(StrEnum):
    """A service that `install` sets up."""

    EDGE = "edge"
    RUNNER = "runner"
    RELAY = "relay"
    BACKUP = "backup"

    @property
    def service(self) -> str:
        """The name of the role's service."""
        return f"lamplighter-{self}.service"


class ServicePlan(Struct, frozen=True, kw_only=True):
    """One role as it is to be installed. `argv` is its program with the arguments.

    `user`: the user of a system service; None for a service of `systemctl --user`. `data`: the role's data folder.
    `state`: its name below /var/lib, for StateDirectory; None if it is elsewhere. `isolated_jobs`: the Docker engine
    runs the jobs, so the runner's unit can be restricted without restricting them.
    """

    role: Role
    argv: tuple[str, ...]
    data: Path
    state: str | None = None
    user: str | None = None
    groups: tuple[str, ...] = ()
    writes: tuple[Path, ...] = ()
    environ: Mapping[str, str] = {}
    program_in_home: bool = False
    isolated_jobs: bool = True

    @property
    def is_system(self) -> bool:
        """Return whether it is a system service, not one of a user's own service manager."""
        return self.user is not None


Setting = tuple[str, object]

# Restrictions that need no privileges, so that `systemctl --user` can apply them too.
COMMON_LIMITS: tuple[Setting, ...] = (
    ("UMask", "0077"),
    ("NoNewPrivileges", "yes"),
    ("LockPersonality", "yes"),
    ("RestrictRealtime", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("SystemCallArchitectures", "native"),
)
FILTERS: tuple[Setting, ...] = (
    ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK"),
    ("RestrictNamespaces", "yes"),
    ("SystemCallFilter", "@system-service"),
    ("SystemCallErrorNumber", "EPERM"),
)
SYSTEM_LIMITS: tuple[Setting, ...] = (
    ("ProtectHostname", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectControlGroups", "yes"),
)
# Not for the runner: jobs need the GPUs. ProtectClock would hide them too, because it closes all devices but the clock.
SERVER_LIMITS: tuple[Setting, ...] = (
    ("CapabilityBoundingSet", ""),
    ("ProtectSystem", "strict"),
    ("ProtectClock", "yes"),
    ("ProtectProc", "invisible"),
    ("PrivateDevices", "yes"),
    ("PrivateTmp", "yes"),
    ("RemoveIPC", "yes"),
)


def render_units(plan: ServicePlan, *, calendar: str = "daily") -> dict[str, str]:
    """Return the text of each unit of the role, by name. `calendar`: when a backup runs (systemd.time(7))."""
    match plan.role:
        case Role.EDGE:
            return {plan.role.service: _render_edge(plan)}
        case Role.RUNNER:
            return {plan.role.service: _render_runner(plan)}
        case Role.RELAY:
            return {plan.role.service: _render_relay(plan)}
        case Role.BACKUP:
            return {plan.role.service: _render_backup(plan), "lamplighter-backup.timer": _render_timer(plan, calendar)}


def unit_to_enable(role: Role) -> str:
    """Return the unit that starts with the machine."""
    return "lamplighter-backup.timer" if role is Role.BACKUP else role.service


def _render_edge(plan: ServicePlan) -> str:
    service = [
        *_serve_forever(plan, watchdog_s=120),  # long enough for `up` to restart a failed edge three times
        ("TimeoutStartSec", "90"),
        ("TimeoutStopSec", "90"),
        ("KillMode", "mixed"),
    ]
    return _render_service(plan, "Lamplighter edge and broker", service, [*_server_limits(plan), *FILTERS])


def _render_runner(plan: ServicePlan) -> str:
    service = [
        *_serve_forever(plan, watchdog_s=60),
        ("RestartPreventExitStatus", f"{USAGE} {REFUSED}"),
        ("TimeoutStartSec", "infinity"),
        ("TimeoutStopSec", "120"),  # the runner asks for more if its grace time is longer
        ("KillMode", "process"),
        ("OOMPolicy", "continue"),
        ("TasksMax", "infinity"),
    ]
    # Jobs of the process engine inherit these restrictions, but need /tmp, other users and mount namespaces.
    limits = list(FILTERS) if plan.isolated_jobs else []
    if plan.is_system:
        limits = [
            *([("CapabilityBoundingSet", "")] if plan.isolated_jobs else []),
            ("ProtectSystem", "full"),
            ("ProtectHome", "read-only" if plan.program_in_home else "yes"),
            *SYSTEM_LIMITS,
            *limits,
        ]
    after = ("docker.service", "nvidia-persistenced.service")
    return _render_service(plan, "Lamplighter runner", service, limits, after=after)


def _render_relay(plan: ServicePlan) -> str:
    service = [
        *_serve_forever(plan, watchdog_s=60),
        ("RestartPreventExitStatus", f"{USAGE} {REFUSED}"),
        ("TimeoutStartSec", "infinity"),
        ("TimeoutStopSec", "30"),
    ]
    return _render_service(plan, "Lamplighter power relay", service, [*_server_limits(plan), *FILTERS])


def _render_backup(plan: ServicePlan) -> str:
    service = [("Type", "oneshot"), *_run_as(plan), ("ExecStart", _join(plan.argv)), ("Nice", "10")]
    return _render_service(plan, "Lamplighter backup", service, [*_server_limits(plan), *FILTERS])


def _render_timer(plan: ServicePlan, calendar: str) -> str:
    timer: list[Setting] = [("OnCalendar", calendar), ("RandomizedDelaySec", "15min"), ("Persistent", "yes")]
    return _render(
        {
            "Unit": [("Description", "Lamplighter backup, regularly")],
            "Timer": timer,
            "Install": [("WantedBy", "timers.target")],
        }
    )


def _serve_forever(plan: ServicePlan, *, watchdog_s: int) -> list[Setting]:
    return [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("WatchdogSec", watchdog_s),
        *_run_as(plan),
        ("ExecStart", _join(plan.argv)),
        ("Restart", "always"),
        ("RestartSec", "5"),
        ("LimitNOFILE", OPEN_FILES_LIMIT),
    ]


def _run_as(plan: ServicePlan) -> list[Setting]:
    named: list[Setting] = [("Environment", f'"{name}={_escape(value)}"') for name, value in plan.environ.items()]
    if not plan.is_system:
        return named
    return [
        ("User", plan.user),
        *([("SupplementaryGroups", " ".join(plan.groups))] if plan.groups else []),
        *([("StateDirectory", plan.state), ("StateDirectoryMode", "0711")] if plan.state else []),
        *named,
    ]


def _server_limits(plan: ServicePlan) -> list[Setting]:
    if not plan.is_system:
        return []
    writes = [*([] if plan.state else [plan.data]), *plan.writes]
    return [
        *SERVER_LIMITS,
        ("ProtectHome", "read-only" if plan.program_in_home else "yes"),
        *SYSTEM_LIMITS,
        *([("ReadWritePaths", _join(map(str, writes)))] if writes else []),
    ]


def _render_service(
    plan: ServicePlan,
    description: str,
    service: Sequence[Setting],
    limits: Sequence[Setting],
    *,
    after: tuple[str, ...] = (),
) -> str:
    waits = plan.role in {Role.RUNNER, Role.RELAY}
    first = "multi-user.target" if plan.is_system else "default.target"
    network = ("network-online.target",) if plan.is_system else ()
    unit: list[Setting] = [
        ("Description", description),
        ("After", " ".join((*network, *after, *((first,) if waits else ())))),
        ("Wants", " ".join((*network, *after[:1]))),
        ("StartLimitIntervalSec", "0"),
    ]
    sections: dict[str, Sequence[Setting]] = {
        "Unit": [setting for setting in unit if setting[1]],
        "Service": [*service, *COMMON_LIMITS, *limits],
    }
    if plan.role is not Role.BACKUP:  # its timer starts it
        sections["Install"] = [("WantedBy", first)]
    return _render(sections)


def _render(sections: Mapping[str, Sequence[Setting]]) -> str:
    lines = ["# Written by `lamplighter install`. Change it with `systemctl edit`: the next `install` replaces it."]
    for name, settings in sections.items():
        lines += ["", f"[{name}]", *(f"{key}={value}" for key, value in settings)]
    return "\n".join(lines) + "\n"


def _join(words: Iterable[str]) -> str:
    return " ".join(map(_quote, words))


def _escape(word: str) -> str:
    """Escape a word for a unit file: % begins a specifier, and $ a variable of ExecStart (systemd.service(5))."""
    return word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n")


def _quote(word: str) -> str:
    escaped = _escape(word).replace("$", "$$")
    return f'"{escaped}"' if not escaped or any(mark in escaped for mark in " \t;'\"\\") else escaped


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
