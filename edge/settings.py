"""What the edge can be told, read once at start (`lamplighter.toml`, `LAMPLIGHTER_*`)."""

from pathlib import Path
from typing import Literal

from msgspec import Struct, field

from bus.settings import BrokerSettings
from schemas.switch import HostDeclaration
from schemas.words import Token


class CorsSettings(Struct, frozen=True):
    """Which web pages may call the API: origins like `https://app.example.com`."""

    origins: tuple[str, ...] = ()


class EdgeSettings(Struct, frozen=True):
    """One edge process. Bytes, seconds and days as the names say.

    `allow_unsynced` takes jobs although the broker may lose them at a power cut.
    `hosts` are those whose power the edge switches, as `[hosts.NAME]` in the file.
    `fd`: an already listening socket that a parent process hands down; it wins over `bind` and `port`.
    """

    bind: str = "127.0.0.1"
    port: int = 8000
    fd: int | None = None
    data: Path = Path(".lamplighter")
    endpoints: tuple[Path, ...] = ()
    broker: BrokerSettings = BrokerSettings(user="edge", monitor="http://127.0.0.1:8222")
    allow_unsynced: bool = False
    cors: CorsSettings = CorsSettings()
    hosts: dict[Token, HostDeclaration] = field(default_factory=dict)
    max_asset_bytes: int = 20 * 1024**3
    reconcile_every_s: float = 15.0
    low_max_wait_s: float = 12 * 3600.0
    retention_days: float = 30.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "text"
