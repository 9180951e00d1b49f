"""What other origins' pages may send, and may see of the answers (Fetch, section 3.3)."""

from collections.abc import Sequence

from litestar.config.cors import CORSConfig

# Named one by one: `*` does not stand for Authorization.
SENT = (
    *("Authorization", "X-API-Key", "Accept", "Accept-Language", "Content-Type", "Range", "If-Range", "If-None-Match"),
    *("Idempotency-Key", "Prefer", "Last-Event-ID", "X-Filename", "X-Trace-Id"),
    *("Tus-Resumable", "Upload-Length", "Upload-Defer-Length", "Upload-Offset", "Upload-Metadata", "Upload-Checksum"),
    *("X-HTTP-Method-Override", "X-Requested-With", "X-Request-ID"),
)
SEEN = (
    *("Location", "ETag", "Content-Range", "Accept-Ranges", "Content-Disposition", "Content-Length", "Retry-After"),
    *("Idempotent-Replayed", "Lamplighter-Asset", "WWW-Authenticate"),
    *("Tus-Resumable", "Tus-Version", "Tus-Extension", "Tus-Max-Size", "Tus-Checksum-Algorithm"),
    *("Upload-Offset", "Upload-Length", "Upload-Defer-Length", "Upload-Metadata", "Upload-Expires"),
)
ASKED_AGAIN_S = 7200  # the longest that browsers keep a preflight's answer


def cors(origins: Sequence[str]) -> CORSConfig | None:
    """For pages of `origins`; None: other origins see nothing."""
    if not origins:
        return None
    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    return CORSConfig(
        allow_origins=list(origins),
        allow_methods=methods,  # type: ignore[arg-type] # a list of literals, which the checker takes for one of str
        allow_headers=list(SENT),
        expose_headers=list(SEEN),
        max_age=ASKED_AGAIN_S,
    )
