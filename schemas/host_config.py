"""The power settings of a host, as its owner declares them at the edge: `[hosts.gpu-1]` of lamplighter.toml."""

from datetime import datetime, time, tzinfo
from typing import Annotated
from zoneinfo import ZoneInfo

from msgspec import Meta, Struct

from schemas.ids import Token
from schemas.power import ForeignUse
from schemas.settings_loader import SETTING_PREFIX, renamed_from
from schemas.webhook import decode_secret

Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Argv = Annotated[tuple[str, ...], Meta(min_length=1)]
TimeSpan = Annotated[str, Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$")]
EnvName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(?![\s\S])")]
Mac = Annotated[str, Meta(pattern=r"^([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}$")]


class PowerPrice(Struct, frozen=True, forbid_unknown_fields=True):
    """The price of an hour: the rent, or the electricity of a machine that draws `watts` while it is on.

    The owner has to measure the draw: a GPU's energy counter does not include the rest of the machine.
    """

    per_hour: NonNegative = 0.0
    per_kwh: NonNegative = 0.0
    watts: NonNegative = 0.0
    currency: Annotated[str, Meta(min_length=1, max_length=8)] = "CNY"

    def __post_init__(self) -> None:
        if bool(self.per_kwh) != bool(self.watts):
            raise ValueError("a price needs both `per_kwh` and `watts`, or per_hour alone: add the missing one")

    @property
    def hourly_cost(self) -> float:
        """The cost of one hour with power."""
        return self.per_hour + self.per_kwh * self.watts / 1000


class DailyBudget(Struct, frozen=True, forbid_unknown_fields=True):
    """The limit of one day: hours with power, or money in the currency of the price. The day is the host's."""

    hours: Positive | None = None
    money: Positive | None = None


class HostConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="driver"):
    """The settings of every declared host, whatever its power driver. Durations are seconds.

    `wake_priority`: the host with the lowest number is woken first. `quiet_hours`: spans of the host's day, such as
    `23:00-07:00`, in which it is not woken, and is powered off once it is idle. `keep_on_for`: which use by others
    keeps it on: people who are logged in (`users`), other programs on its GPUs (`programs`); `[]` ignores both.
    `timezone`: an IANA name; without one, the edge's own. `wake_delay`: how long work must wait before the host is
    woken. `min_on`: how long the host stays on at least. `idle_after`: how long it stays on without work.
    `boot_timeout` and `stop_timeout`: how long powering on and off may take. `fallback_after`: how long the host may be
    blocked before the next one is woken. `timeout`: how long one call of the driver may take.
    """

    wake_priority: Annotated[int, renamed_from("rank")] = 1
    price: PowerPrice | None = None
    budget: DailyBudget | None = None
    quiet_hours: Annotated[tuple[TimeSpan, ...], renamed_from("quiet")] = ()
    keep_on_for: Annotated[tuple[ForeignUse, ...], renamed_from("stays_for")] = ("users", "programs")
    timezone: str | None = None
    wake_delay: NonNegative = 0.0
    min_on: NonNegative = 600.0
    idle_after: NonNegative = 900.0
    boot_timeout: Positive = 600.0
    stop_timeout: Positive = 600.0
    fallback_after: NonNegative = 600.0
    timeout: Positive = 60.0

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
    """Powered by programs of the owner; deploy/power/README.md describes their exit codes.

    Without `off` the runner powers its own machine off; without `state` the host counts as off when it is silent. The
    programs inherit only some variables (`schemas.environment`): `inherit` names more of them, `env` sets some.
    """

    on: Argv
    off: Argv | None = None
    state: Argv | None = None
    env: dict[EnvName, str] = {}
    inherit: tuple[EnvName, ...] = ()

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
    """Powered by a signed webhook to `url`; `secret` is `whsec_…`."""

    url: Annotated[str, Meta(pattern=r"^https?://")]
    secret: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not decode_secret(self.secret):
            raise ValueError("`secret` must be whsec_ and base64, the format of Standard Webhooks")


class WolHostConfig(HostConfig, frozen=True, tag="wol"):
    """Woken by a magic packet to `mac`; its runner powers it off."""

    mac: Mac
    broadcast: str = "255.255.255.255"
    port: Annotated[int, Meta(ge=1, le=65535)] = 9

    @property
    def runner_powers_off(self) -> bool:
        return True


class LibcloudHostConfig(HostConfig, frozen=True, tag="libcloud"):
    """The machine `node` of a cloud, through apache-libcloud.

    `provider` is libcloud's name, such as `ec2`. The credentials are read from the environment variables that `key_env`
    and `secret_env` name, so that they are in no file. `options` are passed to the driver of the provider.
    """

    provider: str
    node: str
    key_env: str
    secret_env: str | None = None
    options: dict[str, str | int | bool] = {}


class RelayHostConfig(HostConfig, frozen=True, tag="relay"):
    """Powered by a relay on the host's own network, which knows it as `name`, or by its id."""

    name: Token | None = None


AnyHostConfig = CommandHostConfig | HttpHostConfig | WolHostConfig | LibcloudHostConfig | RelayHostConfig
