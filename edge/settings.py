"""What the HTTP server takes from one connection, one address, one key, and from all together."""

from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from bus.settings import BrokerSettings
from edge.assets.uploads import UploadSettings
from edge.core.signed_urls import UrlSettings
from edge.outbound.download import OutboundSettings
from edge.owners.quotas import OwnerQuota, OwnerQuotaOverride
from edge.store.factory import StoreSettings
from edge.webhooks.secrets import WebhookSettings
from schemas.host_config import AnyHostConfig, PowerPrice
from schemas.ids import Token
from schemas.settings_loader import renamed_from

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class ServerSettings(Struct, frozen=True):
    """Limits of the HTTP server, as `[server]` in the file.

    `head_bytes` and `head_s`: a request line with its headers, and the trailers of a chunked body. `handshake_s`: a TLS
    handshake. `stall_s`: how long the body of a request may bring nothing. `connections`: in all, less where the
    process may open fewer files. `connections_per_address`: for IPv6, per /64. `proxies`: networks whose connections
    carry many clients, so that no limit per address holds for them; their `X-Forwarded-For` names the client.
    `streams_per_key` and `streams_per_owner`: event streams, over HTTP or a WebSocket, that are open at the same time.
    `sockets_per_key` and `sockets_per_owner`: the same of the gateway, where all sockets of an owner share one stream.
    """

    head_bytes: Annotated[int, Meta(ge=1024)] = 32 * 1024
    head_s: Seconds = 10.0
    handshake_s: Seconds = 10.0
    stall_s: Seconds = 120.0
    connections: Count = 8192
    connections_per_address: Count = 256
    proxies: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    streams_per_key: Count = 200
    streams_per_owner: Count = 400
    sockets_per_key: Count = 1000
    sockets_per_owner: Count = 2000

    def __post_init__(self) -> None:
        for network in self.proxies:
            ip_network(network)  # ValueError names it


# MERGED edge/settings.py: What the edge can be told, read once at start (`lamplighter.toml`, `LAMPLIGHTER_*`).


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


class EnrollmentSettings(Struct, frozen=True):
    """How enrolled hosts get an account at the broker (`bus.server.host_accounts`).

    `nats_conf_dir`: the folder of nats.conf, where the edge writes `hosts.conf`. `reload_command`: the argv that makes
    the broker read both again.
    """

    nats_conf_dir: Annotated[Path | None, renamed_from("folder")] = None
    reload_command: Annotated[tuple[str, ...], renamed_from("reload")] = ()


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

    quotas: OwnerQuotaOverride = OwnerQuotaOverride()


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
    enrollment: Annotated[EnrollmentSettings, renamed_from("joining")] = EnrollmentSettings()
    server: ServerSettings = ServerSettings()
    cors: CorsSettings = CorsSettings()
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
        """`trash_s` as a duration."""
        return timedelta(seconds=self.trash_s)

    @property
    def prices(self) -> dict[Token, PowerPrice | None]:
        """What each declared host costs, by host."""
        return {host: rules.price for host, rules in self.hosts.items()}
