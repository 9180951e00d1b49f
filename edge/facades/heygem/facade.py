"""The settings and the state of the HeyGem facade; its routes receive them as the dependency `heygem`.

`edge.settings` imports this module in every command, so it must not import Litestar.
"""

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from bus.interface import JobStore
from edge.facades.heygem.result_export import ResultExporter
from edge.index.index import JobIndex
from edge.store.port import BlobStore
from schemas.ids import Token


class HeygemSettings(Struct, frozen=True):
    """The `[heygem]` section: routes for clients of HeyGem.

    `enabled`: whether the edge serves `/easy/…`. `endpoint`: the endpoint that runs the jobs of these clients; its
    input has the assets `video` and `audio`. `data_root`: the folder that the edge shares with clients; the vendor's
    container mounts it at /code/data. A client that may submit can name every file in this folder, so share it only
    between clients that trust each other.

    `keyless_port`: a port on 127.0.0.1 where `/easy/…` needs no key; 0 disables it. Every program and user of this
    machine can then submit jobs there and read the jobs of `owner`. So can every client that reaches the port through
    a proxy or tunnel that adds no header.
    """

    enabled: bool = False
    endpoint: Token = "heygem"
    data_root: Path | None = None
    owner: Token = "easy"
    keyless_port: Annotated[int, Meta(ge=0, le=65535)] = 0


class HeygemFacade(Struct, frozen=True):
    """The state of the facade at one edge."""

    settings: HeygemSettings
    result_exporter: ResultExporter


def make_heygem_facade(
    settings: HeygemSettings, data: Path, records: JobStore, store: BlobStore, index: JobIndex
) -> HeygemFacade | None:
    """Build the state of the facade; None if it is disabled. `data`: the data folder of the edge, for notes."""
    if not settings.enabled:
        return None
    return HeygemFacade(settings, ResultExporter(settings.data_root, data / "placing", records, store, index))
