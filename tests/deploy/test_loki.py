"""The stages of deploy/loki/config.alloy on lines that our processes really write."""

import json
import re
from collections.abc import Iterator
from datetime import datetime

import pytest
import re2
import structlog

from lamplighter.cli.log_output import configure_logging
from tests.support.doc_pages import ROOT

CONFIG = (ROOT / "deploy" / "loki" / "config.alloy").read_text()
STAGE = re.compile(r"^  stage\.(\w+) \{\n(.*?)^  \}", re.MULTILINE | re.DOTALL)
PAIR = re.compile(r"(\w+) = \"(\w*)\"")
FIELDS = {"owner": "ann", "job_id": "a-job", "trace_id": "t1"}
BOUNDED_LABELS = {"level"}


def stages(kind: str) -> list[str]:
    return [body for name, body in STAGE.findall(CONFIG) if name == kind]


def pairs_of(kind: str) -> dict[str, str]:
    (body,) = stages(kind)
    return dict(PAIR.findall(body.partition("=")[2]))


def extract(line: str) -> dict[str, str]:
    """Return what Alloy extracts: stage.json takes the named values, stage.regex the named groups (RE2)."""
    found: dict[str, str] = {}
    try:
        values = json.loads(line)
    except ValueError:
        values = {}
    found |= {name: str(values[path]) for name, path in pairs_of("json").items() if path in values}
    for body in stages("regex"):
        quoted = body.partition("=")[2].strip()
        if (match := re2.search(json.loads(quoted), line)) is not None:  # Alloy's strings have JSON's escapes
            found |= match.groupdict()
    return found


@pytest.fixture
def default_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_gets_its_time_level_event_and_job(
    form: str, default_logging: None, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", form)
    structlog.get_logger().warning("attempt_ended", **FIELDS, status="failed", message="two words")
    found = extract(capsys.readouterr().err.rstrip())
    assert {name: found[name] for name in ("level", "event", *FIELDS)} == {
        **FIELDS,
        "level": "warning",
        "event": "attempt_ended",
    }
    assert datetime.fromisoformat(found["timestamp"]).tzinfo is not None
    (timestamp,) = stages("timestamp")
    assert 'source = "timestamp"' in timestamp
    assert 'format = "RFC3339Nano"' in timestamp


@pytest.mark.parametrize(
    "line", ["[7] 2026/11/30 08:00:00.1 [INF] Server is ready", "Traceback (most recent call last):"]
)
def test_lines_of_others_pass_with_nothing_extracted(line: str) -> None:
    assert extract(line) == {}


def test_only_what_has_few_values_is_a_label() -> None:
    extracted = pairs_of("json").keys()
    assert pairs_of("labels").keys() == BOUNDED_LABELS
    assert pairs_of("labels").keys() | pairs_of("structured_metadata").keys() | {"timestamp"} == extracted


def test_what_it_reads_is_what_we_write() -> None:
    units = set(re.findall(r"_SYSTEMD_UNIT=(\S+)\.service", CONFIG))
    assert units == {f"lamplighter-{part}" for part in ("edge", "runner", "relay")}
    assert CONFIG.count("{") == CONFIG.count("}")
