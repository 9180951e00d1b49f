"""Send a message through the library Apprise, which knows mail, Slack, DingTalk, WeCom, Feishu and a hundred others.

Apprise returns only whether a message was sent, and logs the reason. The log may hold the address of a target, which is
a secret: so it goes nowhere else, and every part of the address is masked in what this module reports.
"""

import logging
import re
from collections.abc import Iterable
from threading import Lock
from urllib.parse import unquote

import apprise
from anyio import fail_after, to_thread

from edge.notify.targets import NotificationFailed, TargetInvalid
from schemas.settings_schema import SECRET_MASK

SEND_TIMEOUT_S = 30.0
_REASON_LENGTH_LIMIT = 300
# In the addresses of other services, a token stands in the place of the host.
_SCHEMES_WITH_HOST = frozenset({"mailto", "mailtos", "json", "jsons", "form", "forms", "xml", "xmls"})
_SECRET_LENGTH = 4  # a shorter part, such as a port, would mask parts of ordinary words

_library_log = logging.getLogger("apprise")
_library_log.propagate = False
logging.getLogger("urllib3.connectionpool").setLevel(logging.WARNING)  # its DEBUG lines have paths, which are tokens


class _ReasonHandler(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class AppriseSender:
    """One target. `url`: its address. Raises TargetInvalid if the library cannot read it."""

    _one_at_a_time = Lock()  # the library's log does not say which message a line is about

    def __init__(self, name: str, url: str) -> None:
        self._secrets = sorted(_secret_parts(url), key=len, reverse=True)
        self._service = apprise.Apprise()
        handler = _ReasonHandler()
        _library_log.addHandler(handler)
        try:
            is_valid = self._service.add(url)
        finally:
            _library_log.removeHandler(handler)
        if not is_valid:
            scheme = url.partition("://")[0] if "://" in url else ""
            kind = f"one of Apprise's kind {scheme}://" if scheme.isalnum() and len(scheme) < 20 else "one of Apprise"
            raise TargetInvalid(
                f"`url` of [notify.targets.{name}] is not a complete address, {kind}: docs/notify.md has examples"
            )

    async def send(self, title: str, body: str) -> None:
        """Send one message. Raises NotificationFailed, with a reason that holds no secret."""
        try:
            with fail_after(SEND_TIMEOUT_S):
                reason = await to_thread.run_sync(self._send, title, body, abandon_on_cancel=True)
        except TimeoutError as error:
            raise NotificationFailed(f"no answer within {SEND_TIMEOUT_S:g} s") from error
        if reason is not None:
            raise NotificationFailed(self._mask(reason)[:_REASON_LENGTH_LIMIT])

    def _send(self, title: str, body: str) -> str | None:
        """Return why the message was not sent; None if it was."""
        handler = _ReasonHandler()
        with self._one_at_a_time:
            _library_log.addHandler(handler)
            level = _library_log.level
            _library_log.setLevel(logging.DEBUG)
            try:
                if self._service.notify(title=title, body=body):
                    return None
            except Exception as error:  # a plugin of the library may raise anything; the message must be tried again
                return f"{type(error).__name__}: {error}"
            finally:
                _library_log.setLevel(level)
                _library_log.removeHandler(handler)
        return "; ".join(dict.fromkeys(handler.lines)) or "the library gives no reason"

    def _mask(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, SECRET_MASK)
        return text


def _secret_parts(url: str) -> Iterable[str]:
    """Return the parts of an address that may be secret: all but its scheme, and but the host of some schemes."""
    scheme, _, rest = url.partition("://")
    authority, _, path = rest.partition("/")
    user, _, host = authority.rpartition("@")
    shown = {host, host.partition(":")[0]} if scheme.lower() in _SCHEMES_WITH_HOST else set()
    parts = re.split(r"[:/?&=@#,]", rest)
    found = {url, rest, user, path, *parts, *map(unquote, parts)} - shown
    return {part for part in found if len(part) >= _SECRET_LENGTH}
