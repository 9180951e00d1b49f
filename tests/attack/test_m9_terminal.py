"""M9: what a job says is shown by the command line and never obeyed by the terminal.

ESC [2J, a window title, OSC 52 (the clipboard) came raw through `logs`, `jobs`, `job` and `watch`.
"""

import json
import os
import pty
import re
import sys

import anyio
import pytest
from anyio import to_thread

from lamplighter.cli.display import escape_controls
from schemas import events as e
from schemas.events import FeedPosition, LogEndMessage, LogMessage, ProgressMessage
from schemas.job import JobFailure, JobKey
from tests.edge.routes.conftest import edge
from tests.support.installation import ROOT
from tests.support.served_edge import ServedEdge

__all__ = ["edge"]

CLEAR = "\x1b[2J"
CLIPBOARD = "\x1b]52;c;cHduZWQ=\x07"
HOSTILE = f"bad {CLEAR}{CLIPBOARD}\x9b2J \u202eten\u202c \u2066x\u2069 \x7f\x00\x08 \\[link=http://x]y[/link] end"
# Everything that is below space and no line break, C1, DEL, and what turns a line around.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
OUR_STYLES = re.compile(r"\x1b\[[0-9;?]*[mhlKAG]")  # colours, the cursor shown or hidden, a bar's line drawn again
WORDS = (("logs", "mine"), ("job", "mine"), ("watch", "mine"), ("jobs",))


async def hostile(edge: ServedEdge) -> None:
    """Run a job whose stage, log and error contain terminal commands."""
    await edge.ann.put("/v1/jobs/mine", json={"endpoint": "echo", "input": {"text": HOSTILE}})
    key = JobKey("ann", "mine")
    await edge.world.start((await edge.world.jobs.read(key)).record.job)
    feed, at = edge.world.runner_bus.feed, edge.world.time()
    await feed.publish(key, ProgressMessage(FeedPosition(1, 1, 10), at, 0.5, HOSTILE[:60], 5, 10))
    await feed.publish(key, LogMessage(FeedPosition(1, 1, 20), at, "stdout", f"{HOSTILE}\r\nnext\tline\rover\n"))
    await feed.publish(key, LogEndMessage(FeedPosition(1, 1, 20), at))
    await edge.world.write_event(key, e.Failed(JobFailure("internal", HOSTILE, "image", retryable=False)))


def command(edge: ServedEdge, *words: str) -> tuple[list[str], dict[str, str]]:
    argv = [sys.executable, "-m", "lamplighter", *words]
    environ = {
        **os.environ,
        "LAMPLIGHTER_URL": edge.url,
        "LAMPLIGHTER_KEY": edge.texts["ann"],
        "TERM": "xterm-256color",
    }
    return argv, environ


async def piped(edge: ServedEdge, *words: str) -> str:
    argv, environ = command(edge, *words)
    done = await anyio.run_process(argv, check=False, env=environ, cwd=ROOT)
    return (done.stdout + done.stderr).decode()


def _read_all(terminal: int) -> bytes:
    said = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # EIO: nobody has the other end open any more
            return said
        if not piece:
            return said
        said += piece


async def at_terminal(edge: ServedEdge, *words: str) -> str:
    argv, environ = command(edge, *words)
    ours, theirs = pty.openpty()
    where = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    async with await anyio.open_process(argv, env=environ, cwd=ROOT, **where):
        os.close(theirs)
        said = await to_thread.run_sync(_read_all, ours)
    os.close(ours)
    return said.decode()


@pytest.mark.parametrize("words", WORDS, ids=lambda words: words[0])
async def test_nothing_that_is_obeyed_comes_through_a_pipe(edge: ServedEdge, words: tuple[str, ...]):
    await hostile(edge)
    said = await piped(edge, *words)
    assert OBEYED.findall(said) == []
    assert "mine" in said or "next" in said
    if words[0] in {"logs", "job"}:
        assert r"\x1b[2J" in said
        assert r"\u202eten" in said
        assert r"\[link=http://x]y[/link] end" in said


@pytest.mark.parametrize("words", WORDS, ids=lambda words: words[0])
async def test_nor_to_a_terminal_but_our_own_colours(edge: ServedEdge, words: tuple[str, ...]):
    await hostile(edge)
    said = await at_terminal(edge, *words)
    ours = OUR_STYLES.sub("", said).replace("\r", "")
    assert OBEYED.findall(ours) == []
    assert "]52;c" not in said.replace(r"\x1b]52;c", "")


@pytest.mark.parametrize("words", [("logs", "mine"), ("job", "mine"), ("jobs",), ("watch", "mine")], ids=lambda w: w[0])
async def test_json_has_the_exact_text_and_is_not_obeyed(edge: ServedEdge, words: tuple[str, ...]):
    await hostile(edge)
    said = await piped(edge, *words, "--json")
    assert OBEYED.findall(said) == []
    values = [json.loads(line) for line in said.splitlines()]
    assert HOSTILE in _texts(values)


def _texts(value: object) -> list[str]:
    """Return every string in `value`, without the commands that were added to it."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return [value.partition("\r\n")[0]] if isinstance(value, str) else []


def test_lines_and_tabs_stay():
    assert escape_controls("a\tb\r\nc\n") == "a\tb\nc\n"
    assert escape_controls("a\rb") == r"a\x0db"
    assert escape_controls("中文 é 🙂") == "中文 é 🙂"
