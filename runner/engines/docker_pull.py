"""The answer of a Docker daemon to a pull, sans-io: progress from JSON lines, and why it failed. Pure."""

from collections.abc import Iterator
from typing import Any

import msgspec

from runner.engines.image_port import PullFailed, PullFailure, PullProgress

# Parts of the daemon's text, the most telling first: its text for a refused login also says that there may be no
# such repository, because registries do not tell the two apart to a stranger.
PULL_FAILURES: tuple[tuple[str, PullFailure], ...] = (
    ("no space left on device", PullFailure.DISK_FULL),
    ("disk quota exceeded", PullFailure.DISK_FULL),
    ("manifest unknown", PullFailure.NOT_FOUND),
    ("manifest for", PullFailure.NOT_FOUND),
    ("name unknown", PullFailure.NOT_FOUND),
    ("unauthorized", PullFailure.LOGIN_REFUSED),
    ("authentication required", PullFailure.LOGIN_REFUSED),
    ("no basic auth credentials", PullFailure.LOGIN_REFUSED),
    ("pull access denied", PullFailure.LOGIN_REFUSED),
    ("denied", PullFailure.LOGIN_REFUSED),
    ("incorrect username or password", PullFailure.LOGIN_REFUSED),
    ("not found", PullFailure.NOT_FOUND),
    ("no such host", PullFailure.REGISTRY_UNREACHABLE),
    ("connection refused", PullFailure.REGISTRY_UNREACHABLE),
    ("no route to host", PullFailure.REGISTRY_UNREACHABLE),
    ("network is unreachable", PullFailure.REGISTRY_UNREACHABLE),
    ("timeout", PullFailure.REGISTRY_UNREACHABLE),
    ("temporary failure in name resolution", PullFailure.REGISTRY_UNREACHABLE),
    ("x509", PullFailure.REGISTRY_UNREACHABLE),
    ("server gave http response to https client", PullFailure.REGISTRY_UNREACHABLE),
    ("eof", PullFailure.INTERRUPTED),
    ("connection reset", PullFailure.INTERRUPTED),
    ("broken pipe", PullFailure.INTERRUPTED),
)


def classify_pull_failure(text: str) -> PullFailed:
    """Return the failure for the daemon's text."""
    code = next((code for part, code in PULL_FAILURES if part in text.lower()), PullFailure.FAILED)
    return PullFailed(code, " ".join(text.split()))


class _Layer:
    """Bytes of one layer. Its size is known when its download begins."""

    def __init__(self) -> None:
        self.done = 0
        self.total = 0
        self.is_complete = False


# What the daemon says of a layer that needs no more downloading.
_COMPLETE_STATUSES = frozenset({"Download complete", "Pull complete", "Already exists", "Extracting"})
_LAYER_STATUSES = _COMPLETE_STATUSES | {"Pulling fs layer", "Waiting", "Downloading", "Verifying Checksum", "Retrying"}


class PullProgressParser:
    """Parses the bytes of the answer as they arrive."""

    def __init__(self) -> None:
        self._kept = b""
        self._layers: dict[str, _Layer] = {}

    def feed(self, data: bytes) -> Iterator[PullProgress]:
        """Yield the progress after these bytes, if they held any. Raises PullFailed for the daemon's error."""
        *lines, self._kept = (self._kept + data).split(b"\n")
        has_changed = False
        for line in lines:
            has_changed = self._read_line(line) or has_changed
        if has_changed:
            yield self._progress()

    def _read_line(self, line: bytes) -> bool:
        try:
            message: Any = msgspec.json.decode(line)
        except msgspec.DecodeError:
            return False  # an empty line
        if not isinstance(message, dict):
            return False
        if "error" in message or "errorDetail" in message:
            detail = message.get("errorDetail") or {}
            raise classify_pull_failure(str(detail.get("message") or message.get("error")))
        status, name = str(message.get("status", "")), message.get("id")
        if name is None or not status.startswith(tuple(_LAYER_STATUSES)):
            return False
        layer = self._layers.setdefault(name, _Layer())
        detail = message.get("progressDetail") or {}
        if status == "Downloading":
            layer.done, layer.total = int(detail.get("current") or 0), int(detail.get("total") or 0)
        elif status in _COMPLETE_STATUSES:
            layer.is_complete, layer.done = True, layer.total
        return True

    def _progress(self) -> PullProgress:
        layers = self._layers.values()
        shares = [1.0 if one.is_complete else one.done / one.total if one.total > 0 else 0.0 for one in layers]
        return PullProgress(
            sum(one.done for one in layers),
            sum(max(one.total, one.done) for one in layers),
            int(100 * sum(shares) / len(shares)),
        )
