"""Wake-on-LAN driver: a magic packet powers the host on, and its own runner powers it off. It cannot report a state.

A magic packet is six bytes FF, then sixteen times the address (AMD, Magic Packet Technology, 1995). It is not
acknowledged, so it is sent three times.
"""

import socket

from anyio import to_thread

from schemas.host_config import WolHostConfig
from schemas.power import ReportedPower
from schemas.power_driver import PowerCallFailed, PowerDriver

PACKET_COUNT = 3


def magic_packet(mac: str) -> bytes:
    """Return the 102 bytes of the packet for an address like `a4:bb:6d:00:11:22`."""
    return b"\xff" * 6 + bytes.fromhex(mac.replace(":", "").replace("-", "")) * 16


class WolDriver(PowerDriver):
    """Sends packets to `broadcast` from any interface with a route to it."""

    def __init__(self, declared: WolHostConfig) -> None:
        self._declared = declared

    @property
    def can_report_state(self) -> bool:
        return False

    async def start(self, call_id: str) -> None:
        """Send the packet. The call id is not needed, because a machine that is on ignores the packet."""
        try:
            await to_thread.run_sync(self._send_packets)
        except OSError as error:
            where = f"{self._declared.broadcast}:{self._declared.port}"
            raise PowerCallFailed(
                f"no packet to {where} ({error.strerror}): is the edge on the host's network?"
            ) from error

    async def stop(self, call_id: str) -> None:
        """Do nothing: the runner reads in the host's record that it must power off."""

    async def state(self) -> ReportedPower:
        return ReportedPower.UNKNOWN

    def _send_packets(self) -> None:
        packet = magic_packet(self._declared.mac)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            for _ in range(PACKET_COUNT):
                sender.sendto(packet, (self._declared.broadcast, self._declared.port))
