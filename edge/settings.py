"""The settings of one edge process, read once at start from `lamplighter.toml` and `LAMPLIGHTER_*`.

Each package declares the section that it reads; this module puts the sections together. It belongs to the top layer
with `edge.container` and `edge.process`: no other package of the edge may import it.
"""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from bus.settings import BrokerSettings
from bus.spans import TraceSettings
from edge.assets.uploads import UploadSettings
from edge.console import ConsoleSettings
from edge.core.metrics import MetricsSettings
from edge.facades.heygem.facade import HeygemSettings
from edge.notify.targets import NotifySettings
from edge.outbound import OutboundSettings
from edge.owners.quotas import OwnerQuota, OwnerQuotaOverride
from edge.owners.secrets import SecretSettings
from edge.owners.signed_credentials import UrlSettings
from edge.server.connections import ServerSettings
from edge.store.directory import StoreSettings
from edge.webhooks.owner_webhooks import WebhookSettings
from schemas.host_config import AnyHostConfig, PoolConfig, PowerPrice
from schemas.job import Token
from schemas.settings_loader import renamed_from

MAX_PORT = 65535


class CorsSettings(Struct, frozen=True):
    """The `[cors]` section: which web pages may call the API."""

    origins: tuple[str, ...] = ()
    """Web pages that may call the API, as in `https://app.example.com`."""


class PublicSettings(Struct, frozen=True):
    """The `[public]` section: how other machines reach this installation."""

    listen: str = ""
    """Address and port where the edge also serves HTTPS, as in `0.0.0.0:8443`. Empty: it listens on `bind` only."""
    url: str = ""
    """The edge's address in join tokens, as in `https://gpu.example.com:8443`."""
    broker: str = ""
    """The broker's address in join tokens, as in `tls://gpu.example.com:4222`."""
    names: tuple[str, ...] = ()
    """Names and addresses for the certificate that the edge creates once, in `data`/tls, when `cert` is unset."""
    cert: Path | None = None
    """PEM file of the certificate. Unset: the edge creates one for `names`."""
    key: Path | None = None
    """PEM file of the certificate's private key."""
    broker_cert: Path | None = None
    """PEM file of the broker's certificate, if it differs from `cert`."""
    pin: bool = True
    """Hosts trust the public keys of these certificates only. Turn it off for a certificate of a public authority."""

    def __post_init__(self) -> None:
        host, _, port = self.listen.rpartition(":")
        if self.listen and not (host and port.isdecimal() and int(port) <= MAX_PORT):
            raise ValueError(f"`listen` is {self.listen!r}: it must be address:port, as in 0.0.0.0:8443")


class EnrollmentSettings(Struct, frozen=True):
    """The `[enrollment]` section: how enrolled hosts get an account at the broker (`bus.server.process`)."""

    nats_conf_dir: Annotated[Path | None, renamed_from("folder")] = None
    """The folder of nats.conf, where the edge writes `hosts.conf`. Unset: hosts cannot be added."""
    reload_command: Annotated[tuple[str, ...], renamed_from("reload")] = ()
    """The program, with its arguments, that makes the broker read nats.conf again."""
    remove_after_s: Annotated[float, Meta(ge=60)] = 600.0
    """How long a host that joined with a token of `hosts token` may be silent before it is removed. It is not removed
    while it holds a job, or if its token was created with `--keep`.
    """


class OwnerSettings(Struct, frozen=True):
    """The `[owners.NAME]` section: settings of one owner."""

    quotas: OwnerQuotaOverride = OwnerQuotaOverride()


class EdgeSettings(Struct, frozen=True):
    """All settings of one edge process. Names carry the units.

    `hosts`: the hosts whose power the edge controls, from `[hosts.NAME]`. `pools`: how many of them are on for a pool,
    from `[pools.NAME]`. `quotas`: the limits of every owner; an entry
    of `owners` overrides single limits.
    """

    bind: str = "127.0.0.1"
    """Address on which the edge serves HTTP without TLS."""
    port: Annotated[int, Meta(ge=0, le=MAX_PORT)] = 8000
    """Port of `bind`; 0 picks a free one."""
    fd: int | None = None
    """A listening socket from a parent process. It takes precedence over `bind` and `port`."""
    data: Path = Path(".lamplighter")
    """Folder of the edge's files: uploads, results, the index."""
    endpoints: tuple[Path, ...] = ()
    """Each of these folders has an `endpoint.toml`, or contains folders that have one. Their endpoints accept jobs even
    before a host has reported them.
    """
    broker: BrokerSettings = BrokerSettings(user="edge", monitor="http://127.0.0.1:8222")
    allow_unsynced: bool = False
    """Accept jobs although the broker may lose them in a power cut."""
    public: PublicSettings = PublicSettings()
    enrollment: Annotated[EnrollmentSettings, renamed_from("joining")] = EnrollmentSettings()
    server: ServerSettings = ServerSettings()
    cors: CorsSettings = CorsSettings()
    console: ConsoleSettings = ConsoleSettings()
    heygem: HeygemSettings = HeygemSettings()
    urls: UrlSettings = UrlSettings()
    metrics: MetricsSettings = MetricsSettings()
    outbound: OutboundSettings = OutboundSettings()
    webhooks: WebhookSettings = WebhookSettings()
    notify: NotifySettings = NotifySettings()
    uploads: UploadSettings = UploadSettings()
    secrets: SecretSettings = SecretSettings()
    store: StoreSettings = StoreSettings()
    traces: TraceSettings = TraceSettings()
    hosts: dict[Token, AnyHostConfig] = field(default_factory=dict)
    pools: dict[Token, PoolConfig] = field(default_factory=dict)
    quotas: OwnerQuota = OwnerQuota()
    owners: dict[Token, OwnerSettings] = field(default_factory=dict)
    trash_s: float = 60.0
    """How long deleted bytes are kept, in case a new reference to them is created while they are deleted."""
    max_asset_bytes: int = 20 * 1024**3
    """Size of the largest file that may be uploaded."""
    reconcile_every_s: float = 15.0
    """Interval between two comparisons of records, queue and files."""
    low_max_wait_s: float = 12 * 3600.0
    """After this time a waiting job of priority `low` becomes `normal`, so that it can wake a host."""
    retention_days: float = 30.0
    """How long ended jobs and their files are kept."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level that is logged."""
    log_format: Literal["json", "text"] = "text"
    """The format of the log."""

    @property
    def trash(self) -> timedelta:
        """Return `trash_s` as a duration."""
        return timedelta(seconds=self.trash_s)

    @property
    def prices(self) -> dict[Token, PowerPrice | None]:
        """Return the price of each declared host, by host."""
        return {host: rules.price for host, rules in self.hosts.items()}
