"""Where output may be cut into chunks, so that whoever takes up at a mark starts at the start of a line."""

from schemas.container import MAX_LINE


def whole(data: bytes | bytearray, *, ended: bool = False) -> int:
    """How many bytes of `data` may be handed out now: whole lines, a part of a line too long to mean anything, or,
    when nothing can follow, all of it."""
    if ended or (len(data) > MAX_LINE and b"\n" not in data):
        return len(data)
    return data.rfind(b"\n") + 1
