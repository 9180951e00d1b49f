"""What the edge can be told, read once at start (`lamplighter.toml`, `LAMPLIGHTER_*`)."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from bus.settings import BrokerSettings
from edge.outbound.settings import OutboundSettings
from edge.server.settings import ServerSettings
from edge.services.quotas import Limits, OwnLimits
from edge.services.signing import UrlSettings
from edge.services.uploads import UploadSettings
from edge.store.opening import StoreSettings
from edge.webhooks.settings import WebhookSettings
from schemas.switch import HostDeclaration, Price
from schemas.words import Token


class CorsSettings(Struct, frozen=True):
    """Which web pages may call the API: origins like `https://app.example.com`."""

    origins: tuple[str, ...] = ()


class PublicSettings(Struct, frozen=True):
    """How machines elsewhere reach this installation. Unset, nothing listens beyond `bind`.

    `listen`: address:port where the edge answers with TLS too. `url` and `broker`: what a host that joins is told.
    `cert` and `key`: PEM files; without them a certificate for `names` is made in `data`/tls and kept. `broker_cert`:
    the broker's, where that is another one. `pin`: hosts trust exactly these certificates; off for those of a public
    authority, which are renewed every few weeks.
    """

    listen: str = ""
    url: str = ""
    broker: str = ""
    names: tuple[str, ...] = ()
    cert: Path | None = None
    key: Path | None = None
    broker_cert: Path | None = None
    pin: bool = True


class JoiningSettings(Struct, frozen=True):
    """How hosts are let in at the broker.

    `folder`: where nats.conf lies, and the list of hosts that it includes (`bus.roster`). `reload`: the argv that makes
    the broker read them anew.
    """

    folder: Path | None = None
    reload: tuple[str, ...] = ()


class HeygemSettings(Struct, frozen=True):
    """Where the names that HeyGem's own clients use lead to. `enabled`: whether `/easy/…` is there.

    `endpoint`: what runs their jobs; its input has the assets `video` and `audio`. `data_root`: the folder shared with
    clients, which the vendor's container has at /code/data. Everybody who may submit can name every file in it, so it
    is for clients that trust each other. `keyless_port`: a port of 127.0.0.1 where `/easy/…` asks for no key, 0: none.
    Every program and user of this machine may then submit jobs there and read those of `owner`, and so may whoever
    reaches the port through a proxy or a tunnel that does not show itself.
    """

    enabled: bool = False
    endpoint: Token = "heygem"
    data_root: Path | None = None
    owner: Token = "easy"
    keyless_port: Annotated[int, Meta(ge=0, le=65535)] = 0


class OwnerSettings(Struct, frozen=True):
    """What holds for one owner, as `[owners.NAME.quotas]` in the file."""

    quotas: OwnLimits = OwnLimits()


class EdgeSettings(Struct, frozen=True):
    """One edge process. Bytes, seconds and days as the names say.

    `allow_unsynced` takes jobs although the broker may lose them at a power cut.
    `hosts` are those whose power the edge switches, as `[hosts.NAME]` in the file.
    `quotas` hold for every owner, but for what one of `owners` has of its own.
    `trash_s`: how long deleted bytes are still looked after, should something name them at that very moment.
    `fd`: an already listening socket that a parent process hands down; it wins over `bind` and `port`.
    """

    bind: str = "127.0.0.1"
    port: int = 8000
    fd: int | None = None
    data: Path = Path(".lamplighter")
    endpoints: tuple[Path, ...] = ()
    broker: BrokerSettings = BrokerSettings(user="edge", monitor="http://127.0.0.1:8222")
    allow_unsynced: bool = False
    public: PublicSettings = PublicSettings()
    joining: JoiningSettings = JoiningSettings()
    server: ServerSettings = ServerSettings()
    cors: CorsSettings = CorsSettings()
    heygem: HeygemSettings = HeygemSettings()
    urls: UrlSettings = UrlSettings()
    outbound: OutboundSettings = OutboundSettings()
    webhooks: WebhookSettings = WebhookSettings()
    uploads: UploadSettings = UploadSettings()
    store: StoreSettings = StoreSettings()
    hosts: dict[Token, HostDeclaration] = field(default_factory=dict)
    quotas: Limits = Limits()
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
        """`trash_s` as a duration."""
        return timedelta(seconds=self.trash_s)

    @property
    def prices(self) -> dict[Token, Price | None]:
        """What each declared host costs, by host."""
        return {host: rules.price for host, rules in self.hosts.items()}
