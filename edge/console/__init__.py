"""The console: the page that the edge serves at `/`. This package has its files and its settings, no other code.

`index.html` loads `app.js`, which loads the other modules; there is no build step. Start with `app.js`: its `PAGES`
lists the pages, each a file in `pages/`. Every text is in `text.js`, in English and Chinese.
`edge.http.routes.pages` serves the files and sets their headers. tests/console opens them in Chromium.
"""

import re

from msgspec import Struct

_PAGE_PATH = re.compile(r"/[A-Za-z0-9_-]*")


class ConsoleSettings(Struct, frozen=True):
    """The `[console]` section: the page for people."""

    enabled: bool = True
    """Serve the console."""
    path: str = "/"
    """Where its page is, such as `/` or `/console`."""

    def __post_init__(self) -> None:
        if not _PAGE_PATH.fullmatch(self.path):
            raise ValueError("`path` must be / or /name, with A-Z a-z 0-9 _ - in the name")
