"""The certificate of one TLS server. It is reloaded when its files change, so a renewal needs no restart."""

import os
import ssl
from collections.abc import Awaitable, Callable

import anyio
import anyio.to_thread
import structlog

from bus.server.config import TlsFiles
from schemas.certificates import first_certificate, read_certificate

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # for TLS 1.2: forward secrecy and no CBC; TLS 1.3 has its own list
RENEWAL_CHECK_INTERVAL_S = 3.0

log = structlog.get_logger()

FileStamps = tuple[tuple[int, int, int], ...] | None  # inode, size and mtime of each file; None: one does not exist


class PublicKeyChanged(Exception):
    """The new certificate has another public key than the one that clients pin."""

    def __init__(self) -> None:
        super().__init__(
            "it has another public key than the one that joined hosts pin, so the old one is still served: renew "
            "with the same key, or restart to serve the new one, and join every host again"
        )


def read_stamps(files: TlsFiles) -> FileStamps:
    """Return what changes when a file is written or replaced. Blocking."""
    try:
        return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, files))
    except OSError:
        return None


def read_key_digest(files: TlsFiles) -> str:
    """Return the sha256 of the certificate's public key. Blocking. Raises OSError, ValueError."""
    return read_certificate(first_certificate(files.cert.read_text())).key_sha256


class ServedCertificate:
    """`context`: the SSL context for new handshakes. Blocking; the constructor raises OSError for unusable files.

    `pinned`: clients trust exactly this public key. A certificate with another key is served only after a restart.
    """

    def __init__(self, files: TlsFiles, *, pinned: bool = False) -> None:
        self._files = files
        self._loaded_stamps = read_stamps(files)
        self.context = self._load_context()
        self._pinned_key = read_key_digest(files) if pinned else None

    def reload_if_changed(self) -> bool:
        """Load a new context if the files changed since the last call. Return whether a new one is served.

        The new context replaces the old one only when certificate and key are loaded and match. Loading into the old
        context would break all handshakes while a program has written one of the two files.
        """
        stamps = read_stamps(self._files)
        if stamps == self._loaded_stamps:
            return False
        self._loaded_stamps = stamps
        try:
            context = self._load_context()
            self._check_key()
        except (OSError, ValueError, PublicKeyChanged) as error:  # OSError includes ssl.SSLError
            log.warning("certificate_reload_failed", cert=str(self._files.cert), error=str(error))
            return False
        self.context = context
        log.info("certificate_reloaded", cert=str(self._files.cert))
        return True

    def _load_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._files, password=_refuse_password)
        context.set_ciphers(CIPHERS)
        return context

    def _check_key(self) -> None:
        if self._pinned_key not in {None, read_key_digest(self._files)}:
            raise PublicKeyChanged


def _refuse_password() -> str:
    raise ValueError("the key is encrypted with a password: store it without one")  # OpenSSL would ask on the terminal


async def watch_certificate(certificate: ServedCertificate, on_renewed: Callable[[], Awaitable[None]]) -> None:
    """Reload the certificate whenever its files change, and await `on_renewed` after each reload. Without end."""
    while True:
        await anyio.sleep(RENEWAL_CHECK_INTERVAL_S)
        if await anyio.to_thread.run_sync(certificate.reload_if_changed):
            await on_renewed()
