"""The settings of one edge process, read once at start from `lamplighter.toml` and `LAMPLIGHTER_*`.

Each package declares the section that it reads; this module puts the sections together. It belongs to the top layer
with `edge.container` and `edge.process`: no other package of the edge may import it.
"""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Struct, field

from bus.settings import BrokerSettings
from edge.assets.uploads import UploadSettings
from edge.core.signed_urls import UrlSettings
from edge.facades.heygem.facade import HeygemSettings
from edge.http.routes.console import ConsoleSettings
from edge.outbound.download import OutboundSettings
from edge.owners.quotas import OwnerQuota, OwnerQuotaOverride
from edge.server.connections import ServerSettings
from edge.store.factory import StoreSettings
from edge.webhooks.secrets import WebhookSettings
from schemas.host_config import AnyHostConfig, PowerPrice
from schemas.ids import Token
from schemas.settings_loader import renamed_from


class CorsSettings(Struct, frozen=True):
    """The `[cors]` section: web pages of `origins`, like `https://app.example.com`, may call the API."""

    origins: tuple[str, ...] = ()


class PublicSettings(Struct, frozen=True):
    """The `[public]` section: how other machines reach this installation. Unset, the edge listens on `bind` only.

    `listen`: address:port where the edge also serves HTTPS. `url` and `broker`: the addresses in join tokens.
    `cert` and `key`: PEM files. Without them the edge creates a certificate for `names` once, in `data`/tls.
    `broker_cert`: the broker's certificate, if it differs. `pin`: hosts trust exactly these certificates. Turn `pin`
    off for certificates of a public authority, which are renewed every few weeks.
    """

    listen: str = ""
    url: str = ""
    broker: str = ""
    names: tuple[str, ...] = ()
    cert: Path | None = None
    key: Path | None = None
    broker_cert: Path | None = None
    pin: bool = True


class EnrollmentSettings(Struct, frozen=True):
    """The `[enrollment]` section: how enrolled hosts get an account at the broker (`bus.server.host_accounts`).

    `nats_conf_dir`: the folder of nats.conf, where the edge writes `hosts.conf`. `reload_command`: the argv that makes
    the broker read both again.
    """

    nats_conf_dir: Annotated[Path | None, renamed_from("folder")] = None
    reload_command: Annotated[tuple[str, ...], renamed_from("reload")] = ()


class OwnerSettings(Struct, frozen=True):
    """The `[owners.NAME]` section: settings of one owner."""

    quotas: OwnerQuotaOverride = OwnerQuotaOverride()


class EdgeSettings(Struct, frozen=True):
    """All settings of one edge process. Names carry the units.

    `allow_unsynced`: accept jobs although the broker may lose them in a power cut.
    `hosts`: the hosts whose power the edge controls, from `[hosts.NAME]`.
    `quotas`: the limits of every owner; an entry of `owners` overrides single limits.
    `trash_s`: how long deleted bytes can still be restored, for a reference that is created at the same moment.
    `fd`: a listening socket from a parent process; it takes precedence over `bind` and `port`.
    """

    bind: str = "127.0.0.1"
    port: int = 8000
    fd: int | None = None
    data: Path = Path(".lamplighter")
    endpoints: tuple[Path, ...] = ()
    broker: BrokerSettings = BrokerSettings(user="edge", monitor="http://127.0.0.1:8222")
    allow_unsynced: bool = False
    public: PublicSettings = PublicSettings()
    enrollment: Annotated[EnrollmentSettings, renamed_from("joining")] = EnrollmentSettings()
    server: ServerSettings = ServerSettings()
    cors: CorsSettings = CorsSettings()
    console: ConsoleSettings = ConsoleSettings()
    heygem: HeygemSettings = HeygemSettings()
    urls: UrlSettings = UrlSettings()
    outbound: OutboundSettings = OutboundSettings()
    webhooks: WebhookSettings = WebhookSettings()
    uploads: UploadSettings = UploadSettings()
    store: StoreSettings = StoreSettings()
    hosts: dict[Token, AnyHostConfig] = field(default_factory=dict)
    quotas: OwnerQuota = OwnerQuota()
    owners: dict[Token, OwnerSettings] = field(default_factory=dict)
    trash_s: float = 60.0
    max_asset_bytes: int = 20 * 1024**3
    reconcile_every_s: float = 15.0
    low_max_wait_s: float = 12 * 3600.0
    retention_days: float = 30.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "text"

    @property
    def trash(self) -> timedelta:
        """Return `trash_s` as a duration."""
        return timedelta(seconds=self.trash_s)

    @property
    def prices(self) -> dict[Token, PowerPrice | None]:
        """Return the price of each declared host, by host."""
        return {host: rules.price for host, rules in self.hosts.items()}
