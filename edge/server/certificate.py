"""The certificate of one TLS server. It is reloaded when its files change, so a renewal needs no restart."""

import os
import ssl

import structlog

from bus.server.config import TlsFiles

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # for TLS 1.2: forward secrecy and no CBC; TLS 1.3 has its own list

log = structlog.get_logger()

_Stamp = tuple[tuple[int, int, int], ...] | None  # inode, size and mtime of each file; None: one does not exist


class ServedCertificate:
    """`context`: the SSL context for new handshakes. Blocking; the constructor raises OSError for unusable files."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._loaded_stamp = self._read_stamp()
        self.context = self._load_context()

    def reload_if_changed(self) -> None:
        """Load a new context if the files changed since the last call.

        The new context replaces the old one only when certificate and key are loaded and match. Loading into the old
        context would break all handshakes while a program has written one of the two files.
        """
        stamp = self._read_stamp()
        if stamp == self._loaded_stamp:
            return
        self._loaded_stamp = stamp
        try:
            self.context = self._load_context()
        except OSError as error:  # includes ssl.SSLError
            log.warning("certificate_reload_failed", cert=str(self._files.cert), error=str(error))
        else:
            log.info("certificate_reloaded", cert=str(self._files.cert))

    def _load_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._files)
        context.set_ciphers(CIPHERS)
        return context

    def _read_stamp(self) -> _Stamp:
        try:
            return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, self._files))
        except OSError:
            return None
