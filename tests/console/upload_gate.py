"""Uploads of the console that a test holds after their first piece."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
from msgspec import Struct, field
from playwright.async_api import BrowserContext, Error, Page, Route, expect

MIB = 2**20


class UploadGate(Struct, frozen=True):
    """Lets the first piece of each upload through, and holds the others until it is opened.

    `offsets`: where each piece began, in the order in which the page sent them.
    """

    opened: anyio.Event = field(default_factory=anyio.Event)
    offsets: list[int] = field(default_factory=list)


@asynccontextmanager
async def hold_uploads(context: BrowserContext) -> AsyncIterator[UploadGate]:
    """Hold the uploads of all pages of the context until the gate is opened, or at the end of the block."""
    gate = UploadGate()

    async def pass_piece(route: Route) -> None:
        offset = route.request.headers.get("upload-offset")
        if offset is not None:
            gate.offsets.append(int(offset))
            if int(offset) > 0:
                await gate.opened.wait()
        with suppress(Error):  # the page that sent it was left
            await route.continue_()

    await context.route("**/v1/uploads/*", pass_piece)
    try:
        yield gate
    finally:
        gate.opened.set()


async def uploaded_bytes(page: Page) -> int:
    """Wait until a part of a file is there; return how much."""
    await expect(page.get_by_text("Uploading: 1 MB of")).to_be_visible(timeout=30_000)
    return int(await page.get_by_role("progressbar", name="Upload").get_attribute("value") or 0)
