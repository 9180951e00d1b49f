"""What may reach a terminal: text of jobs, clients and other machines is shown, and never obeyed.

A control character in a job's log could clear the screen, set the title, fill the clipboard (OSC 52) or turn the line
around (bidirectional overrides). Such characters are printed as escapes, `\\x1b`. `--json` keeps the exact text.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_BIDI = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_LINES = (0x0085, 0x2028, 0x2029)  # what some terminals and editors break a line at
_ABOVE_ASCII = {*range(0x80, 0xA0), *_BIDI, *_LINES}
_CONTROLS = {*range(0x20), 0x7F} - {ord("\n"), ord("\t")}


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


_VISIBLE = {code: _escape(code) for code in _CONTROLS | _ABOVE_ASCII}
_JSON = {code: f"\\u{code:04x}" for code in {0x7F, *_ABOVE_ASCII}}  # msgspec escapes what is below


def visible(text: str) -> str:
    """`text` with its control characters as escapes; line breaks and tabs stay, also those of Windows."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)


def json_line(value: Any) -> str:
    """`value` as one line of JSON that no terminal obeys."""
    return msgspec.json.encode(value).decode().translate(_JSON) + "\n"


class SafeConsole(Console):
    """A console that prints the text it is given `visible`; the styles are its own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        return _visible(super().render(renderable, options))


def _visible(segments: Iterable[Segment]) -> Iterator[Segment]:
    for segment in segments:
        yield segment if segment.control else segment._replace(text=visible(segment.text))
