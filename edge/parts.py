"""What the routes work with: every service of one edge, wired by `edge.app`."""

from pathlib import Path

from msgspec import Struct, field

from bus.port import Bus
from edge.facades.gateway.relays import Relays
from edge.facades.heygem.placing import Placing
from edge.power.controller import PowerController
from edge.services.assets import Assets
from edge.services.audit import Audit
from edge.services.books import Books
from edge.services.catalog import Catalog
from edge.services.erasures import Erasures
from edge.services.fetches import Fetches
from edge.services.follow import Follower
from edge.services.gate import Gate
from edge.services.hosts import HostWatch
from edge.services.index import Index
from edge.services.intake import Intake
from edge.services.joining import Joining
from edge.services.keys import Keys
from edge.services.quotas import Quotas
from edge.services.signing import Signer
from edge.services.stream_limits import StreamLimits
from edge.services.supply import Supply
from edge.services.tokens import Tokens
from edge.services.uploads import Uploads
from edge.services.usage import Accounts
from edge.services.view import Viewer
from edge.services.window import Window
from edge.settings import EdgeSettings
from edge.store.port import AssetStore
from edge.strangers import Failures, Proxies, StrangerLog
from edge.webhooks.build import Webhooks


class Parts(Struct, frozen=True, kw_only=True):
    """The services of one edge process. `forms`: the folder for files of forms that are being read."""

    settings: EdgeSettings
    bus: Bus
    store: AssetStore
    assets: Assets
    uploads: Uploads
    catalog: Catalog
    index: Index
    window: Window
    gate: Gate
    supply: Supply
    webhooks: Webhooks
    fetches: Fetches
    intake: Intake
    follower: Follower
    viewer: Viewer
    hosts: HostWatch
    keys: Keys
    tokens: Tokens
    signer: Signer
    joining: Joining
    placing: Placing
    erasures: Erasures
    quotas: Quotas
    power: PowerController
    usage: Accounts
    books: Books
    relays: Relays
    audit: Audit
    forms: Path
    streams: StreamLimits
    sockets: StreamLimits
    proxies: Proxies
    strangers: StrangerLog = field(default_factory=StrangerLog)
    failures: Failures = field(default_factory=Failures)
