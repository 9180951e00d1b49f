"""The server name in the first bytes of a TLS connection, read by OpenSSL itself."""

import ssl


class ServerNameReader:
    """Takes the bytes that a client sends first, as they arrive. `is_done`: it is complete, or no ClientHello."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.is_done = False
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sni_callback = self._note_name
        self._incoming = ssl.MemoryBIO()
        self._connection = context.wrap_bio(self._incoming, ssl.MemoryBIO(), server_side=True)

    def _note_name(self, _: object, name: str | None, __: object) -> int:
        self.name = name
        return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME  # nothing more is needed of this handshake

    def feed(self, data: bytes) -> None:
        """Read more of what the client sent."""
        self._incoming.write(data)
        try:
            self._connection.do_handshake()
        except ssl.SSLWantReadError:
            return
        except (ssl.SSLError, ValueError):  # the end that the callback asked for, or no ClientHello
            pass
        self.is_done = True
