"""The power settings of hosts and pools, as the operator declares them at the edge.

They are `[hosts.gpu-1]` and `[pools.lipsync]` of lamplighter.toml.
"""

from datetime import datetime, time, tzinfo
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

from msgspec import Meta, Struct

from schemas.job import Token
from schemas.power import ForeignUse
from schemas.settings_loader import renamed_from
from schemas.settings_schema import SECRET, SETTING_PREFIX, unit_of
from schemas.webhook import decode_secret

Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Timeout = Annotated[float, Meta(gt=0), unit_of("seconds")]
Duration = Annotated[float, Meta(ge=0), unit_of("seconds")]
Argv = Annotated[tuple[str, ...], Meta(min_length=1, description='a list of words, as in ["program", "argument"]')]
TimeSpan = Annotated[
    str,
    Meta(
        pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$", description="a span of the day, as in 23:00-07:00"
    ),
]
EnvName = Annotated[
    str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(?![\s\S])", description="the name of an environment variable")
]
Mac = Annotated[
    str,
    Meta(pattern=r"^([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}$", description="six bytes in hex, as in a4:bb:6d:00:11:22"),
]
HttpUrl = Annotated[str, Meta(pattern=r"^https?://", description="an address that starts with http:// or https://")]


DEFAULT_CURRENCY = "CNY"  # of a price that names none, and of every price of a runner: `[gpu.price]` has no currency


class PowerPrice(Struct, frozen=True, forbid_unknown_fields=True):
    """The price of an hour: the rent, or the electricity of a machine that draws `watts` while it is on.

    The owner has to measure the draw.
    """

    per_hour: NonNegative = 0.0
    """Price of an hour in which the host is on, as for a rented machine."""
    per_kwh: NonNegative = 0.0
    """Price of a kilowatt-hour."""
    watts: Annotated[float, Meta(ge=0), unit_of("watts")] = 0.0
    """Power that the whole machine draws while it is on. A GPU's energy counter does not include the rest."""
    currency: Annotated[str, Meta(min_length=1, max_length=8)] = DEFAULT_CURRENCY
    """Name of the currency, shown with each amount."""

    def __post_init__(self) -> None:
        if bool(self.per_kwh) != bool(self.watts):
            raise ValueError("a price needs both `per_kwh` and `watts`, or per_hour alone: add the missing one")

    @property
    def hourly_cost(self) -> float:
        """The cost of one hour with power."""
        return self.per_hour + self.per_kwh * self.watts / 1000


class DailyBudget(Struct, frozen=True, forbid_unknown_fields=True):
    """The limit of one day, in hours with power or in money."""

    hours: Annotated[float, Meta(gt=0), unit_of("hours")] | None = None
    """Hours in a day that the host may be on."""
    money: Positive | None = None
    """What the host may cost in a day, in the currency of `price`."""


class HostConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="driver"):
    """The settings of every declared host, whatever its power driver."""

    wake_priority: Annotated[int, renamed_from("rank")] = 1
    """The host with the lowest number is woken first."""
    price: PowerPrice | None = None
    budget: DailyBudget | None = None
    quiet_hours: Annotated[tuple[TimeSpan, ...], renamed_from("quiet")] = ()
    """Spans of the host's day in which it is not woken, and is powered off once it is idle."""
    keep_on_for: Annotated[tuple[ForeignUse, ...], renamed_from("stays_for")] = ("users", "programs")
    """Which use by others keeps the host on: `users`, people who are logged in; `programs`, other programs on its GPUs.
    `[]` ignores both.
    """
    timezone: str | None = None
    """A time zone of IANA, such as Asia/Shanghai, for `quiet_hours` and `budget`. Unset: the edge's own."""
    wake_delay: Duration = 0.0
    """How long work must wait before the host is woken."""
    min_on: Duration = 600.0
    """The shortest time for which the host stays on."""
    idle_after: Duration = 900.0
    """How long the host stays on without work."""
    boot_timeout: Timeout = 600.0
    """How long powering on may take, until the runner reports."""
    stop_timeout: Timeout = 600.0
    """How long powering off may take."""
    fallback_after: Duration = 600.0
    """How long the host may be blocked before the next one is woken."""
    timeout: Timeout = 60.0
    """How long one call of the driver may take."""

    def __post_init__(self) -> None:
        if self.budget and self.budget.money is not None and self.price is None:
            raise ValueError("a budget in money needs `price`: add price = { per_hour = … }")
        if self.timezone is not None:
            _time_zone(self.timezone)

    @property
    def runner_powers_off(self) -> bool:
        """Whether the host's runner powers the machine off, because the driver cannot."""
        return False

    def local_time(self, at: datetime) -> datetime:
        """Return `at` on the host's clock."""
        return at.astimezone(_time_zone(self.timezone) if self.timezone else None)

    def is_quiet_at(self, at: datetime) -> bool:
        """Return whether `at` is in one of the quiet hours; a span may cross midnight."""
        clock = self.local_time(at).time()
        return any(_is_within(clock, *map(time.fromisoformat, span.split("-"))) for span in self.quiet_hours)


def _time_zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"{name!r} is not a time zone that this machine knows: use a name like Asia/Shanghai"
        ) from error


def _is_within(clock: time, start: time, end: time) -> bool:
    return start <= clock < end if start <= end else clock >= start or clock < end


class CommandHostConfig(HostConfig, frozen=True, tag="command"):
    """Powered by programs of the operator; deploy/power/README.md describes their exit codes.

    The programs inherit only some variables of the edge (`schemas.outbound_rules`), and those that `inherit` names.
    """

    on: Argv
    """The program, with its arguments, that powers the host on."""
    off: Argv | None = None
    """The program that powers it off. Unset: the runner powers its own machine off."""
    state: Argv | None = None
    """The program that reports the power state. Unset: the host counts as off when its heartbeat has expired."""
    states: Argv | None = None
    """The program that reports the states of all hosts with the same `states` and variables, in place of `state`."""
    env: Annotated[dict[EnvName, str], SECRET] = {}
    """Variables for these programs."""
    inherit: tuple[EnvName, ...] = ()
    """Names of the edge's own variables that these programs get, so that their values are in no file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        settings = [name for name in self.inherit if name.startswith(SETTING_PREFIX)]
        if settings:
            raise ValueError(
                f"`inherit` names {settings[0]}: that is a setting of the edge, which programs never get: remove it"
            )

    @property
    def runner_powers_off(self) -> bool:
        return self.off is None


class HttpHostConfig(HostConfig, frozen=True, tag="http"):
    """A host that a signed webhook powers on and off."""

    url: HttpUrl
    """Where the webhook is sent."""
    secret: Annotated[str, SECRET]
    """Signs the webhook: `whsec_` and base64."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not decode_secret(self.secret):
            raise ValueError("`secret` must be whsec_ and base64, the format of Standard Webhooks")


class WolHostConfig(HostConfig, frozen=True, tag="wol"):
    """Woken by a magic packet to `mac`; its runner powers it off."""

    mac: Mac
    """The hardware address of the host's network card."""
    broadcast: str = "255.255.255.255"
    """The address that the magic packet is sent to."""
    port: Annotated[int, Meta(ge=1, le=65535)] = 9
    """The UDP port that the magic packet is sent to."""

    @property
    def runner_powers_off(self) -> bool:
        return True


class LibcloudHostConfig(HostConfig, frozen=True, tag="libcloud"):
    """A cloud machine, through apache-libcloud."""

    provider: str
    """The provider's name in apache-libcloud, such as `ec2`."""
    node: str
    """The machine's id at the provider."""
    key_env: str
    """The environment variable that holds the key, so that it is in no file."""
    secret_env: str | None = None
    """The environment variable that holds the secret."""
    options: Annotated[dict[str, str | int | bool], SECRET] = {}
    """Arguments for libcloud's driver, such as `region`."""


class ModuleHostConfig(HostConfig, frozen=True, tag="module"):
    """Powered by a class of an installed package (`lamplighter.power`)."""

    module: Annotated[str, Meta(min_length=1, description="the name of an entry point, or package.module:Class")]
    """The class: its name in the entry point group `lamplighter.power_drivers`, or `package.module:Class`."""
    options: Annotated[dict[str, str | int | float | bool], SECRET] = {}
    """Settings for the class."""
    inherit: tuple[EnvName, ...] = ()
    """Names of the edge's own variables that the class gets, so that their values are in no file."""


class RelayHostConfig(HostConfig, frozen=True, tag="relay"):
    """Powered by a relay on the host's own network."""

    name: Token | None = None
    """The host's name at the relay. Unset: its name here."""
    wake_only: bool = False
    """The relay can only power the host on, as by Wake-on-LAN: its runner powers it off, and silence means off."""

    @property
    def runner_powers_off(self) -> bool:
        return self.wake_only


class KubernetesHostConfig(HostConfig, frozen=True, tag="kubernetes"):
    """A Pod of a Kubernetes cluster in which a runner runs (docs/kubernetes.md)."""

    pod_template: Annotated[str, Meta(min_length=1)] = "lamplighter-pilot"
    """The PodTemplate in the cluster that the Pod is made from."""
    namespace: str | None = None
    """The namespace of the Pod. Unset: that of the edge, which runs in the cluster."""
    server: HttpUrl | None = None
    """Address of the API server. Unset: that of the cluster that the edge runs in."""
    token_file: Path | None = None
    """File with the token of a service account, read for each call. Unset: that of the edge's own Pod."""
    ca_file: Path | None = None
    """File with the certificate authority of the API server. Unset: that of the edge's own Pod, or the system's."""
    drain_s: Annotated[float, Meta(ge=1), unit_of("seconds")] = 120.0
    """How long the runner may take to end when the Pod is deleted: its grace period."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.server is not None and (self.token_file is None or self.namespace is None):
            raise ValueError("`server` also needs `token_file` and `namespace`: add what is missing")


AnyHostConfig = (
    CommandHostConfig
    | HttpHostConfig
    | WolHostConfig
    | LibcloudHostConfig
    | RelayHostConfig
    | ModuleHostConfig
    | KubernetesHostConfig
)


class PoolConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The `[pools.NAME]` section: how many hosts of a pool are on."""

    min: Annotated[int, Meta(ge=0)] = 0
    """How many hosts of the pool are kept on, with or without jobs."""
    max: Annotated[int, Meta(ge=1)] | None = None
    """The most hosts of the pool that are woken for its jobs. Unset: as many as offer it."""
    target_wait_s: Timeout = 600.0
    """A further host is woken if a waiting job would start later than this."""
    cool_down_s: Duration = 600.0
    """A host is drained after its pools have needed fewer hosts for this long."""

    def __post_init__(self) -> None:
        if self.max is not None and self.min > self.max:
            raise ValueError(f"`min` is {self.min} and `max` is {self.max}: `max` must not be smaller than `min`")
