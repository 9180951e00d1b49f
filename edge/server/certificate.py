"""The certificate of one TLS server, read again when its files have changed, so that a renewal needs no restart."""

import os
import ssl

import structlog

from bus.server.config import TlsFiles

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2: forward secrecy, and none with CBC; TLS 1.3 has its own

log = structlog.get_logger()

_Stamp = tuple[tuple[int, int, int], ...] | None  # inode, size and time of each file; None: one of them is not there


class ServedCertificate:
    """`context`: for handshakes from now on. Blocking; raises OSError where the files cannot be used at first."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._seen = self._stamp()
        self.context = self._made()

    def look(self) -> None:
        """Make a new context where the files are others than at the last look.

        The new context replaces the old one once certificate and key have been loaded and match. Loading into the old
        one would break every handshake between the moments at which a program writes the one file and the other.
        """
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self.context = self._made()
        except OSError as error:  # ssl.SSLError is one
            log.warning("certificate_not_renewed", cert=str(self._files.cert), error=str(error))
        else:
            log.info("certificate_renewed", cert=str(self._files.cert))

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._files)
        context.set_ciphers(CIPHERS)
        return context

    def _stamp(self) -> _Stamp:
        try:
            return tuple((found.st_ino, found.st_size, found.st_mtime_ns) for found in map(os.stat, self._files))
        except OSError:
            return None
