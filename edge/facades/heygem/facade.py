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

    A client that may submit can name every file in `data_root`, so share it only between clients that trust each other.
    Every program and user of this machine can submit jobs at `keyless_port` and read the jobs of `owner`. So can every
    client that reaches the port through a proxy or tunnel that adds no header.
    """

    enabled: bool = False
    """Serve `/easy/…`, the routes of a HeyGem server. `lamplighter up` turns it on unless this says otherwise."""
    endpoint: Token = "heygem"
    """The endpoint that runs the jobs of these clients. Its input has the assets `video` and `audio`."""
    data_root: Path | None = None
    """Folder that the edge shares with these clients. The vendor's container mounts it at /code/data."""
    owner: Token = "easy"
    """The owner of jobs that arrive at `keyless_port`."""
    keyless_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Port on 127.0.0.1 where `/easy/…` needs no key; 0 disables it."""
    tts_endpoint: Token = "tts"
    """The endpoint that turns the text of these clients into speech. Its input has `text`, and may have `voice`."""
    tts_root: Path | None = None
    """Folder of the voices of these clients. The vendor's speech container mounts it at /code/data."""
    tts_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Port on 127.0.0.1 for the vendor's speech routes, without a key (its own is 18180); 0 disables it."""


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
