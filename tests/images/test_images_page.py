"""docs/images.md says what is so: its examples go through the contract, its tables are held against the code."""

import re
from pathlib import Path

import msgspec
import pytest

from runner.engines.docker_container_config import CACHE_ENV
from runner.engines.port import JOB_ENV, REUSE_ENV, WARM_ENV
from runner.trial.rules import RULES
from schemas.container_protocol import (
    EXIT_FAILURES,
    LINE_LIMIT_BYTES,
    OUTPUT_FILE,
    PARTIAL_FILE_PREFIX,
    START_SOCKET,
    ContainerLine,
    ExitCode,
    JobFile,
    LogLine,
    read_line,
    start_socket,
)
from schemas.endpoint import Endpoint, EndpointRetry, ProcessCommand, Resources, Reuse, Timeouts
from schemas.lifecycle import FAILURES, RetryRule

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "images.md").read_text()
EXCERPTS = {"python": "main.py", "toml": "endpoint.toml", "dockerfile": "Dockerfile"}


CONTRACT = PAGE[PAGE.index("The rest of this page is the contract.") :]


def block(language: str) -> list[str]:
    """The lines of the contract's first block in that language."""
    found = re.findall(rf"```{language}\n(.*?)```", CONTRACT, re.DOTALL)
    assert found, language
    return str(found[0]).splitlines()


def rows(head: str) -> list[str]:
    """The first cells of the table that begins with `head`."""
    table = PAGE[PAGE.index(head) :].split("\n\n")[0]
    return [line.split("|")[1].strip() for line in table.splitlines()[2:]]


@pytest.mark.parametrize("language", EXCERPTS)
def test_what_it_shows_of_echo_is_in_echo(language: str) -> None:
    source = (ROOT / "images" / "echo" / EXCERPTS[language]).read_text().splitlines()
    assert [line for line in block(language) if line not in source] == []


def test_its_job_is_one() -> None:
    job = msgspec.json.decode("\n".join(block("json")), type=JobFile)
    assert msgspec.json.decode("\n".join(block("json"))).keys() == {*JobFile.__struct_fields__}
    assert job.input["file"] == "file.txt"


def test_its_lines_are_every_kind_of_message() -> None:
    said = [read_line("stdout", line.encode()) for line in block("jsonl")]
    assert {type(message) for message in said} == {*ContainerLine.__args__} - {LogLine}


def test_its_exit_codes_are_all_there_are_and_retried_as_it_says() -> None:
    assert [int(row) for row in rows("| exit |")] == sorted(ExitCode)
    again = {ExitCode.BAD_JOB: "no", ExitCode.BAD_INPUT: "no", ExitCode.GPU_UNUSABLE: "not counted as an attempt"}
    for code, word in again.items():
        retry = FAILURES[EXIT_FAILURES[code] or ""].retry
        assert retry is (RetryRule.NEVER if word == "no" else RetryRule.FREE)
        assert re.search(rf"^\| {code.value} \|.*{word} \|$", PAGE, re.MULTILINE)


def test_its_fields_are_all_of_endpoint_toml() -> None:
    table = PAGE[PAGE.index("| field |") :].split("\n\n")[0]
    named = set(re.findall(r"`\[*([a-z_]+)\]*`", table))
    structs = (Endpoint, Resources, Timeouts, EndpointRetry, Reuse, ProcessCommand)
    assert named == {field for struct in structs for field in struct.__struct_fields__}


def test_it_names_what_the_runner_sets_and_reads() -> None:
    for word in (
        JOB_ENV,
        f"{WARM_ENV}=1",
        OUTPUT_FILE,
        PARTIAL_FILE_PREFIX,
        f"/job/{START_SOCKET}",
        f"{REUSE_ENV}=1",
        f"/job/{start_socket(1)}",
        f"{LINE_LIMIT_BYTES >> 10} KiB",
    ):
        assert word in PAGE
    assert "XDG_CACHE_HOME" in CACHE_ENV


def test_its_rules_are_all_that_try_checks() -> None:
    assert [row.strip("`") for row in rows("| rule |")] == [*RULES]


def test_its_commands_name_files_that_are_there() -> None:
    for path in re.findall(r"(?<![\w/])images/[\w/.]+", PAGE):
        assert (ROOT / path.rstrip(".")).exists(), path
    assert block("sh")[0] == "docker build -f images/echo/Dockerfile -t lamplighter-echo images/"
