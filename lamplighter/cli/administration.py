"""Commands of administrators: `lamplighter keys`, `console`, `owners`, `secrets`, `audit`, `usage`, `webhooks`…

Most need a key with the scope admin. The value of a secret comes from stdin or a file, not from an argument.
"""

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from lamplighter import api
from lamplighter.cli import display
from lamplighter.cli.context import INTERRUPTED, CliContext, client_command
from lamplighter.cli.language import say
from schemas.credentials import CLIENT_SCOPES, Scope
from schemas.job import FINAL_STATUSES, Status

SCOPES = f"May be repeated [{' '.join(CLIENT_SCOPES)}]."


@click.command()
@client_command
def console(session: CliContext) -> None:
    """Print a link that opens the console in a browser, signed in with this key. It works once, for 15 minutes."""
    made = session.client.call(api.create_sign_in_ticket())
    link = f"{session.client.url}{made['path']}"
    session.show({"url": link, "expires_at": made["expires_at"]}, lambda: session.out.print(link, soft_wrap=True))


@click.group()
def keys() -> None:
    """Create, list, rotate and revoke API keys (needs a key with the scope admin)."""


@keys.command("create")
@click.argument("owner")
@click.option("--scope", "scopes", multiple=True, type=click.Choice([scope.value for scope in Scope]), help=SCOPES)
@click.option("--name", default="", help="What the key is for.")
@click.option(
    "--language", type=click.Choice(["zh", "en"]), help="Language of messages, unless a client asks for another."
)
@click.option("--days", type=click.FloatRange(0, 36500, min_open=True), help="Days until the key expires.")
@client_command
def create_key(
    session: CliContext, owner: str, scopes: tuple[str, ...], days: float | None, **fields: str | None
) -> None:
    """Create a key for OWNER. It is shown only once."""
    ends = None if days is None else (datetime.now(UTC) + timedelta(days=days)).isoformat()
    made = session.client.call(api.create_key(owner, list(scopes), expires_at=ends, **fields))
    _show_made_key(session, made)


@keys.command("list")
@client_command
def list_keys(session: CliContext) -> None:
    """List the keys."""
    found = session.client.call(api.get_json("/v1/keys"))["keys"]
    columns = ("KEY", "OWNER", "SCOPES", "CREATED", "EXPIRES", "LAST USED", "NAME")
    session.show_table(found, columns, map(_key_row, found), "no keys")


def _key_row(key: dict[str, Any]) -> tuple[str, ...]:
    times = (display.format_time_text(key[name]) for name in ("created_at", "expires_at", "used_at"))
    return key["id"], key["owner"], " ".join(key["scopes"]), *times, key["name"]


@keys.command("rotate")
@click.argument("key_id", metavar="ID")
@click.option(
    "--grace",
    metavar="HOURS",
    type=click.FloatRange(0, 720),
    default=24.0,
    show_default=True,
    help="How long the old secret stays valid.",
)
@client_command
def rotate_key(session: CliContext, key_id: str, grace: float) -> None:
    """Give a key a new secret, shown only once. The old secret stays valid for --grace hours."""
    _show_made_key(session, session.client.call(api.rotate_key(key_id, grace * 3600)))


def _show_made_key(session: CliContext, made: dict[str, Any]) -> None:
    session.show(made, lambda: _print_key(session, made))


def _print_key(session: CliContext, made: dict[str, Any]) -> None:
    """Print the key alone on stdout, so that a script can take it, and what it is on stderr."""
    session.out.print(made["key"], markup=False, highlight=False)
    scopes = ", ".join(made.get("scopes", ())) or "no scopes"
    session.err.print(f"key {made['id']} of {made['owner']} with {scopes}; it is not shown again", highlight=False)


@keys.command("revoke")
@click.argument("key_id", metavar="ID")
@client_command
def revoke_key(session: CliContext, key_id: str) -> None:
    """Revoke a key immediately."""
    session.client.call(api.delete_path(f"/v1/keys/{api.quote_segment(key_id)}"))
    session.show({"revoked": key_id}, lambda: session.out.print(say(f"key {key_id} revoked"), highlight=False))


DELETION_POLL_INTERVAL_S = 1.0
COUNT_LABELS = {
    "jobs": ("job", "jobs"),
    "cancelled": ("of them cancelled first", "of them cancelled first"),
    "assets": ("file", "files"),
    "uploads": ("unfinished upload", "unfinished uploads"),
    "keys": ("key", "keys"),
    "deliveries": ("webhook delivery", "webhook deliveries"),
    "feed": ("message to followers", "messages to followers"),
    "usage_rows": ("row of usage", "rows of usage"),
    "secrets": ("secret", "secrets"),
}


@click.group()
def owners() -> None:
    """Delete all data of an owner, or show the progress (needs a key with the scope admin)."""


@owners.command("delete")
@click.argument("owner")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--no-wait", is_flag=True, help="Return when the deletion has started. It continues in the background.")
@client_command
def delete_owner(session: CliContext, owner: str, yes: bool, no_wait: bool) -> None:
    """Delete all jobs, files, uploads, keys, secrets, deliveries and usage of OWNER. First cancel running jobs."""
    if not yes and not (
        sys.stdin.isatty() and click.confirm(say(f"Delete all data of {owner}? This cannot be undone."))
    ):
        raise click.UsageError("nothing was deleted: add --yes to delete without a question")
    report = session.client.call(api.delete_owner(owner))
    if not no_wait:
        report = _wait_until_deleted(session, owner, report)
    _show_report(session, report)


def _wait_until_deleted(session: CliContext, owner: str, report: dict[str, Any]) -> dict[str, Any]:
    """Return the final report. Ctrl-C ends the waiting, not the deletion."""
    try:
        with session.err.status("") as line:
            while report["state"] != "done":
                line.update(say(_progress_line(report)))
                time.sleep(DELETION_POLL_INTERVAL_S)
                report = session.client.call(api.get_owner_deletion(owner))
    except KeyboardInterrupt:
        session.err.print(
            say(f"\nThe deletion continues. Show it with: lamplighter owners show {owner}"), highlight=False
        )
        sys.exit(INTERRUPTED)
    return report


@owners.command("show")
@click.argument("owner")
@client_command
def show_deletion(session: CliContext, owner: str) -> None:
    """Show the progress of the deletion of OWNER, and what was deleted."""
    _show_report(session, session.client.call(api.get_owner_deletion(owner)))


def _progress_line(report: dict[str, Any]) -> str:
    jobs = display.format_count(report["erased"]["jobs"], "job")
    if report["waiting_for"]:
        return f"{jobs} deleted, {report['waiting_for']} to be cancelled first"
    if report["state"] == "settling":
        return "all deleted; checking for data that arrived in the meantime"
    return f"{jobs} and {display.format_count(report['erased']['assets'], 'file')} deleted"


def _show_report(session: CliContext, report: dict[str, Any]) -> None:
    session.show(report, lambda: _print_report(session, report))


def _print_report(session: CliContext, report: dict[str, Any]) -> None:
    erased = report["erased"]
    session.out.print(f"{report['owner']}: {report['state']}", markup=False, highlight=False)
    for name, words in COUNT_LABELS.items():
        size = f" ({display.format_size(erased['bytes'])})" if name == "assets" else ""
        count, what = display.format_count(erased.get(name, 0), *words).split(" ", 1)
        session.out.print(f"{count:>8} {say(what)}{size}", markup=False, highlight=False)
    if report["hosts_pending"]:
        hosts = ", ".join(report["hosts_pending"])
        session.out.print(
            say(f"{hosts}: copies are deleted within a minute, or before the next job once the host is on"),
            highlight=False,
        )


SECRET_COLUMNS = ("SECRET", "OWNER", "SET", "BY KEY")

owner_option = click.option("--owner", help="Of this owner [that of the key]. Needs the scope admin.")
installation_option = click.option(
    "--installation", is_flag=True, help="Of the installation, for jobs of every owner. Needs the scope admin."
)


@click.group()
def secrets() -> None:
    """Set, list and delete secrets, which programs of jobs read as files; replace the key that seals them."""


@secrets.command("set")
@click.argument("name")
@owner_option
@installation_option
@click.option("--file", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Read the value from FILE.")
@client_command
def set_secret(session: CliContext, name: str, owner: str | None, installation: bool, file: Path | None) -> None:
    """Set the secret NAME to the text on stdin, without its last newline, in place of an earlier value."""
    holder = _check_holder(owner, installation)
    facts = session.client.set_secret(name, _read_secret(file), **holder)
    session.show(facts, lambda: session.out.print(say(f"secret {name} is set"), markup=False, highlight=False))


def _check_holder(owner: str | None, installation: bool) -> dict[str, Any]:
    if owner is not None and installation:
        raise click.UsageError("--owner and --installation exclude each other: give one of them")
    return {"owner": owner, "installation": installation}


def _read_secret(file: Path | None) -> str:
    """Return the value. At a terminal it is asked for and not shown. Raises UsageError."""
    if file is None and sys.stdin.isatty():
        return str(click.prompt(say("Value"), hide_input=True))
    data = sys.stdin.buffer.read() if file is None else file.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise click.UsageError("the value is not UTF-8 text: encode it, for example with base64") from error
    return text.removesuffix("\n").removesuffix("\r")


@secrets.command("list")
@owner_option
@installation_option
@client_command
def list_secrets(session: CliContext, owner: str | None, installation: bool) -> None:
    """List the names. Values are never shown."""
    found = session.client.secrets(**_check_holder(owner, installation))
    session.show_table(found, SECRET_COLUMNS, map(_secret_row, found), "no secrets")


def _secret_row(secret: dict[str, Any]) -> tuple[str, ...]:
    holder = secret["owner"] or say("the installation")
    return secret["name"], holder, display.format_time_text(secret["set_at"]), secret["set_by"]


@secrets.command("delete")
@click.argument("name")
@owner_option
@installation_option
@client_command
def delete_secret(session: CliContext, name: str, owner: str | None, installation: bool) -> None:
    """Delete the secret NAME. Waiting jobs that need it fail when they start."""
    session.client.delete_secret(name, **_check_holder(owner, installation))
    text = say(f"secret {name} is deleted")
    session.show({"deleted": name}, lambda: session.out.print(text, markup=False, highlight=False))


@secrets.command("rotate-key")
@click.option("--finish", is_flag=True, help="Remove the old key from the key file.")
@client_command
def rotate_sealing_key(session: CliContext, finish: bool) -> None:
    """Seal all secrets with a new key (needs the scope admin). The old key stays valid until --finish."""
    facts = session.client.call(api.rotate_secret_key(finish=finish))

    def show() -> None:
        key, file, count = facts["key_id"], facts["file"], facts["sealed"]
        done = say(f"the key {key} of {file} seals all secrets ({count})")
        session.out.print(done, markup=False, highlight=False, soft_wrap=True)
        step = _NEXT_STEP if facts["old_key_ids"] else _LAST_STEP
        session.err.print(say(step), markup=False, highlight=False, soft_wrap=True)

    session.show(facts, show)


_NEXT_STEP = (
    "the old key is still in that file. Copy the file to every edge that has its own, and keep a copy outside the "
    "backups; then, after a minute: lamplighter secrets rotate-key --finish"
)
_LAST_STEP = "no old key is in that file any more: keep a copy of it outside the backups"


AUDIT_PAGE_LIMIT = 200
AUDIT_POLL_INTERVAL_S = 2.0
AUDIT_COLUMNS = ("TIME", "ACTION", "SUBJECT", "OWNER", "BY", "FROM", "DETAILS")


@click.command()
@click.option("--by", metavar="KEY", help="Only what the key with this id did.")
@click.option("--action", help="Only this action, such as key_created.")
@click.option("--subject", metavar="ID", help="Only what was done to this key, host, owner, job or file.")
@click.option("--owner", help="Only actions on what this owner has.")
@click.option("--from", "since", metavar="TIME", help="Start, such as 2026-11-01T00:00:00Z [all that is kept].")
@click.option("--to", "until", metavar="TIME", help="End, not included [now].")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Events to print.")
@click.option("--follow", is_flag=True, help="Print the newest events, then new ones until Ctrl-C.")
@client_command
def audit(session: CliContext, limit: int, since: str | None, until: str | None, follow: bool, **given: Any) -> None:
    """Show who did what to keys, hosts, owners, jobs, files and settings, newest first. 400 days are kept."""
    filters = {name: value for name, value in {"from": since, "to": until, **given}.items() if value}
    if follow:
        _follow_events(session, filters, limit)
        return
    found = []
    for event in _read_events(session, filters):
        found.append(event)
        if len(found) == limit:
            break
    session.show_table(found, AUDIT_COLUMNS, map(_event_row, found), "no events")


def _read_events(session: CliContext, filters: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the events, newest first, page after page."""
    cursor: str | None = None
    while True:
        place = {"cursor": cursor} if cursor else {}
        page = session.client.call(api.get_json("/v1/audit", limit=str(AUDIT_PAGE_LIMIT), **filters, **place))
        yield from page["events"]
        cursor = page["next_cursor"]
        if cursor is None:
            return


def _follow_events(session: CliContext, filters: dict[str, str], limit: int) -> None:
    """Print events, oldest first, and go on with each new one."""
    last, is_first = 0, True
    while True:
        fresh: list[dict[str, Any]] = []
        for event in _read_events(session, filters):
            if event["id"] <= last or (is_first and len(fresh) == limit):
                break
            fresh.append(event)
        for event in reversed(fresh):
            last = event["id"]
            session.show(event, lambda event=event: session.out.print("  ".join(filter(None, _event_row(event)))))  # type: ignore[misc]
        is_first = False
        time.sleep(AUDIT_POLL_INTERVAL_S)


def _event_row(event: dict[str, Any]) -> tuple[str, ...]:
    details = "; ".join(f"{name}: {text}" if name else text for name, text in event.get("details", {}).items())
    client = event["client"] or "-"
    owner = event.get("owner") or "-"
    return display.format_time_text(event["at"]), event["action"], event["subject"], owner, event["by"], client, details


@click.command()
@click.option("--from", "since", metavar="TIME", help="Start, such as 2026-11-01T00:00:00Z [30 days ago].")
@click.option("--to", "until", metavar="TIME", help="End, not included [now].")
@click.option("--owner", help="Only this owner. Needs a key with the scope admin, which shows all owners by default.")
@client_command
def usage(session: CliContext, since: str | None, until: str | None, owner: str | None) -> None:
    """Show jobs, GPU time, energy, cost, and how long the hosts were on and off."""
    given = {"from": since, "to": until, "owner": owner}
    found = session.client.call(api.get_json("/v1/usage", **{name: value for name, value in given.items() if value}))
    session.show(found, lambda: _print_usage(session, found))


def _print_usage(session: CliContext, found: dict[str, Any]) -> None:
    owner = found["owner"] or say("all owners")
    session.out.print(say(f"{owner}, {found['from'][:19]} to {found['to'][:19]}"), markup=False, highlight=False)
    rows = [_usage_row(share["endpoint"], share) for share in found["by"]]
    columns = ("ENDPOINT", "JOBS", "GPU TIME", "ENERGY", "COST", "HOURS ON")
    display.print_table(
        session.out, columns, [*rows, _usage_row(say("total"), found)] if rows else [], "no job has ended in this time"
    )
    hours = f"hosts on {found['hours_on']:.1f} h, off {found['hours_saved']:.1f} h"
    session.out.print(say(hours), markup=False, highlight=False)


def _usage_row(name: str, used: dict[str, Any]) -> tuple[str, ...]:
    money = f"{used['cost']['amount']:.2f} {used['cost']['currency']}"
    energy = f"{used['energy_j'] / 3_600_000:.3f} kWh"
    return name, str(used["jobs"]), f"{used['gpu_s']:.0f} s", energy, money, f"{used['hours_on']:.2f}"


NOT_DELIVERED = 1  # the exit code
FINAL_STATES = [status.value for status in Status if status in FINAL_STATUSES]
WEBHOOK_COLUMNS = ("WEBHOOK", "URL", "ENDPOINTS", "STATES", "CREATED", "STATE")


@click.group()
def webhooks() -> None:
    """Call a URL when any of your jobs ends: list, add, delete and test webhooks."""


@webhooks.command("list")
@client_command
def list_webhooks(session: CliContext) -> None:
    """List the webhooks for all jobs."""
    found = session.client.webhooks()
    empty = "no webhooks for all jobs"
    session.show_table(found, WEBHOOK_COLUMNS, map(_webhook_row, found), empty)


def _webhook_row(webhook: dict[str, Any]) -> tuple[str, ...]:
    endpoints = " ".join(webhook["endpoints"]) or say("all")
    state = say("disabled" if webhook["disabled"] else "active")
    created = display.format_time_text(webhook["created_at"])
    return webhook["id"], webhook["url"], endpoints, " ".join(webhook["states"]), created, state


@webhooks.command("add")
@click.argument("receiver", metavar="URL")
@click.option("--endpoint", "endpoints", multiple=True, help="Only jobs of this endpoint. May be repeated.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(FINAL_STATES),
    help="Only jobs that end like this. May be repeated.",
)
@client_command
def add_webhook(session: CliContext, receiver: str, endpoints: tuple[str, ...], states: tuple[str, ...]) -> None:
    """Add a webhook: URL is called with the final states of all your jobs. Prints its id."""
    added = session.client.add_webhook(receiver, endpoints, states)
    session.show(added, lambda: session.out.print(added["id"], markup=False, highlight=False))


@webhooks.command("delete")
@click.argument("webhook_id", metavar="ID")
@client_command
def delete_webhook(session: CliContext, webhook_id: str) -> None:
    """Delete a webhook. Its waiting deliveries are not sent."""
    session.client.delete_webhook(webhook_id)
    text = say(f"webhook {webhook_id} deleted")
    session.show({"deleted": webhook_id}, lambda: session.out.print(text, markup=False, highlight=False))


@webhooks.command("test")
@click.argument("webhook_id", metavar="ID")
@client_command
def test_webhook(session: CliContext, webhook_id: str) -> None:
    """Send one test message to a webhook and show the answer. Exit code 1 unless it is 2xx."""
    answer = session.client.test_webhook(webhook_id)
    status, why = answer["status"], answer["error"]
    text = say(f"no answer: {why}") if status is None else say(f"the receiver answered {status}")
    session.show(answer, lambda: session.out.print(text, markup=False, highlight=False))
    if not answer["delivered"]:
        sys.exit(NOT_DELIVERED)


NOT_SENT = 1  # the exit code
NO_TARGETS = "no targets: add [notify.targets.NAME] to the edge's settings"


@click.group()
def notify() -> None:
    """Show the conditions that hold, and test the targets of messages (needs a key with the scope admin)."""


@notify.command("list")
@client_command
def list_notices(session: CliContext) -> None:
    """List the conditions that hold now."""
    found = session.client.call(api.get_json("/v1/notifications"))
    empty = "nothing is wrong" if found["targets"] else NO_TARGETS
    columns = ("CONDITION", "SUBJECT", "SINCE", "NOT YET TOLD", "DETAILS")
    session.show_table(found, columns, map(_notice_row, found["notices"]), empty)


def _notice_row(notice: dict[str, Any]) -> tuple[str, ...]:
    since = display.format_time_text(notice["began_at"])
    waiting = " ".join(notice["pending"]) or "-"
    return notice["condition"], notice["subject"] or "-", since, waiting, "; ".join(notice["values"].values())


@notify.command("test")
@client_command
def send_test(session: CliContext) -> None:
    """Send one message to each target and show which failed and why. Exit code 1 if one failed."""
    results = session.client.call(api.test_notifications())["results"]
    rows = [(one["target"], say("sent" if one["sent"] else "not sent"), one["error"] or "") for one in results]
    session.show_table(results, ("TARGET", "RESULT", "WHY"), rows, NO_TARGETS)
    if not results or not all(one["sent"] for one in results):
        sys.exit(NOT_SENT)
