"""Requests of whoever runs the installation: keys and owners. They need a key with the scope admin."""

from typing import Any

from lamplighter.wire import Call, fetch, quoted, read_any


def create_key(owner: str, scopes: list[str], **fields: str | None) -> Call[Any]:
    """Make a key; `fields` are name, language and expires_at."""
    given = {name: value for name, value in fields.items() if value is not None}
    body: dict[str, Any] = {"owner": owner, **given, **({"scopes": scopes} if scopes else {})}
    return Call(method="POST", path="/v1/keys", read=read_any, body=body)


def rotate_key(key_id: str, grace_s: float) -> Call[Any]:
    """Give a key a new secret; the one before opens for `grace_s` too."""
    return Call(method="POST", path=f"/v1/keys/{quoted(key_id)}/rotate", read=read_any, body={"grace_s": grace_s})


def delete_owner(owner: str) -> Call[Any]:
    """Delete everything of an owner."""
    return Call(method="DELETE", path=f"/v1/owners/{quoted(owner)}", read=read_any)


def owner_deletion(owner: str) -> Call[Any]:
    """How far that is."""
    return fetch(f"/v1/owners/{quoted(owner)}/deletion")
