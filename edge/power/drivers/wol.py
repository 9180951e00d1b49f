"""Wake-on-LAN: a magic packet wakes the machine; its own runner powers it off; nobody tells whether it is on.

A magic packet is six bytes FF and sixteen times the address (AMD, Magic Packet Technology, 1995). Nothing acknowledges
it, so it is sent three times.
"""

import socket

from anyio import to_thread

from edge.power.drivers.port import PowerCallFailed, PowerDriver
from schemas.host_config import WolHostConfig
from schemas.power import ReportedPower

PACKET_COUNT = 3


def magic_packet(mac: str) -> bytes:
    """The 102 bytes for an address like `a4:bb:6d:00:11:22`."""
    return b"\xff" * 6 + bytes.fromhex(mac.replace(":", "").replace("-", "")) * 16


class WolDriver(PowerDriver):
    """Packets leave from any interface that has a way to `broadcast`."""

    def __init__(self, declared: WolHostConfig) -> None:
        self._declared = declared

    @property
    def can_report_state(self) -> bool:
        return False

    async def start(self, call_id: str) -> None:
        """The id is not needed: a machine that is on ignores the packet."""
        try:
            await to_thread.run_sync(self._send_packets)
        except OSError as error:
            where = f"{self._declared.broadcast}:{self._declared.port}"
            raise PowerCallFailed(
                f"no packet to {where} ({error.strerror}): is the edge on the host's network?"
            ) from error

    async def stop(self, call_id: str) -> None:
        """Nothing to send: the runner reads in its record that it is to power off."""

    async def state(self) -> ReportedPower:
        return ReportedPower.UNKNOWN

    def _send_packets(self) -> None:
        packet = magic_packet(self._declared.mac)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            for _ in range(PACKET_COUNT):
                sender.sendto(packet, (self._declared.broadcast, self._declared.port))
