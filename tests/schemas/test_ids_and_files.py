"""Tokens, ids, keys, reasons, settings and endpoint files: what is taken and what is refused."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import events as e
from schemas.credentials import ApiKey, Scope, parse_credential
from schemas.endpoint import EndpointInvalid, parse_endpoint
from schemas.events import RecordUnreadable, UnknownEvent, decode_record, encode_record
from schemas.job import (
    WAIT_REASON_ORDER,
    Status,
    Submission,
    Token,
    WaitReason,
    derive_job_id,
    is_token,
    make_uuid7,
    most_relevant_reason,
    request_digest,
)
from schemas.lifecycle import next_record
from schemas.problems import PROBLEM_TYPES, ProblemError
from schemas.settings_loader import SettingsInvalid, load_settings
from tests.support.schema_samples import LATER, NOW, make_event, make_job


@pytest.mark.parametrize("text", ["", "a.b", "a b", "a" * 65, "a\n", "ü", "a/b", "*", ">", "a\0"])
def test_what_is_no_token(text):
    assert not is_token(text)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(text, Token)


@given(st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True))
def test_what_is_a_token(text):
    assert is_token(text)
    assert msgspec.convert(text, Token) == text


@given(st.integers(0, 2**48 - 2), st.binary(min_size=10, max_size=10))
def test_uuid7_is_one_and_sorts_by_time(ms, entropy):
    text = make_uuid7(ms, entropy)
    assert is_token(text)
    assert (text[14], text[19] in "89ab", len(text)) == ("7", True, 36)
    assert text < make_uuid7(ms + 1, entropy)


def test_a_derived_id_depends_on_owner_and_key():
    ids = {derive_job_id("a", "bc"), derive_job_id("ab", "c"), derive_job_id("a", "b"), derive_job_id("a", "bc")}
    assert len(ids) == 3
    assert all(is_token(one) for one in ids)


def test_the_digest_is_of_what_was_sent_but_its_trace():
    one = {"endpoint": "echo", "input": {"a": 1, "b": 2}, "trace_id": "x"}
    same = {"input": {"b": 2, "a": 1}, "endpoint": "echo"}
    other = {"endpoint": "echo", "input": {"a": 1, "b": 2}, "priority": "normal"}
    assert request_digest(one) == request_digest(same)
    assert request_digest(one) != request_digest(other)


@pytest.mark.parametrize(
    "body",
    [
        {"endpoint": "echo"},
        {"endpoint": "e.cho", "input": {}},
        {"endpoint": "echo", "input": {}, "surprise": 1},
        {"endpoint": "echo", "input": {}, "policy": {"max_attempts": 0}},
        {"endpoint": "echo", "input": {}, "not_before": "2026-11-22T01:00:00"},
        {"endpoint": "echo", "input": {}, "webhook": {"url": "ftp://x"}},
        {"endpoint": "echo", "input": []},
    ],
)
def test_submissions_that_are_refused(body):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(body, Submission)


def test_a_fact_of_a_newer_writer_is_shown_and_the_job_still_counts():
    recorded = next_record(make_job(Status.QUEUED), make_event(e.Started, make_job(Status.QUEUED)), LATER)
    newer = encode_record(recorded).replace(b'"type":"started"', b'"type":"teleported"')
    read = decode_record(newer)
    assert isinstance(read.event, UnknownEvent)
    assert (read.event.type, read.job) == ("teleported", recorded.job)


NO_JOB = b'{"at":"2026-11-21T12:00:00Z","event":{"type":"queued"},"job":{}}'


NO_TEXT = b'{"at":"2026-11-21T12:00:00Z","event":{"type":"queued"},"job":{"id":"\xff"}}'
NESTED = b'{"at":"2026-11-21T12:00:00Z","event":{"type":"queued"},"job":{"input":{"a":' + b"[" * 100_000


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[]", b"\xff", b'{"at":1}', NO_JOB, NO_TEXT, NESTED])
def test_rubbish_in_a_record_is_named_and_nothing_is_guessed(rubbish):
    with pytest.raises(RecordUnreadable):
        decode_record(rubbish)


def test_keys_are_taken_apart_and_the_rest_is_no_key():
    assert parse_credential("lamp_ab-1_secret_of-16-chars") == ("ab-1", "secret_of-16-chars")
    for text in ("", "lamp_", "lamp_a_short", "lump_a_secretsecretsecret", "lamp_a_secretsecretsecret\n"):
        assert parse_credential(text) is None


def test_admin_implies_the_clients_scopes_but_not_those_of_a_runner():
    key = ApiKey(id="k", owner="o", scopes=(Scope.ADMIN,), secret_sha256="", created_at=NOW)
    assert {scope for scope in Scope if key.allows(scope)} == set(Scope) - {Scope.RUNNER, Scope.RELAY}


def test_what_the_host_says_is_reported_before_quota_and_behind():
    assert most_relevant_reason({WaitReason.BEHIND, WaitReason.QUOTA, WaitReason.HOST_OFF}) is WaitReason.HOST_OFF
    assert most_relevant_reason({WaitReason.BEHIND, WaitReason.QUOTA}) is WaitReason.QUOTA
    assert most_relevant_reason(set()) is None
    assert WAIT_REASON_ORDER[-2:] == (WaitReason.QUOTA, WaitReason.BEHIND)


def test_every_refusal_has_a_status_and_makes_its_document():
    codes = (
        "body_malformed field_unknown unauthorized forbidden not_found endpoint_unknown conflict job_final "
        "job_not_final deadline_passed asset_in_use body_too_large input_invalid asset_missing digest_mismatch "
        "idempotency_mismatch url_refused rate_limited quota_exceeded internal unavailable store_full "
        "owner_deleting offset_mismatch tus_version media_type_unknown upload_locked checksum_mismatch "
        "head_timeout head_too_large too_many_connections not_set_up secret_missing "
        "join_token_expired join_token_revoked join_token_used_up"
    )
    assert set(PROBLEM_TYPES) == set(codes.split())
    problem = ProblemError("asset_missing", "upload it first", missing=("sha256:ab",)).problem
    assert (problem.status, problem.code, problem.missing) == (422, "asset_missing", ("sha256:ab",))


class Sub(msgspec.Struct, frozen=True):
    port: int = 1
    on: bool = False


class WordSample(msgspec.Struct, frozen=True):
    name: str = "x"
    sub: Sub = Sub()


def test_settings_come_from_the_file_and_variables_win():
    text = 'name = "file"\n[sub]\nport = 5\n'
    read = load_settings(WordSample, text, {"LAMPLIGHTER_SUB__ON": "1", "LAMPLIGHTER_NAME": "env", "PATH": "/bin"})
    assert read == WordSample("env", Sub(5, on=True))


class Listed(msgspec.Struct, frozen=True):
    folders: tuple[Path, ...] = ()


def test_a_list_in_a_variable_is_json():
    assert load_settings(Listed, "", {"LAMPLIGHTER_FOLDERS": '["a", "b"]'}).folders == (Path("a"), Path("b"))
    with pytest.raises(SettingsInvalid, match="LAMPLIGHTER_FOLDERS"):
        load_settings(Listed, "", {"LAMPLIGHTER_FOLDERS": "[a"})


def test_a_variable_and_its_prefix_exclude_each_other():
    with pytest.raises(SettingsInvalid, match="LAMPLIGHTER_SUB__PORT"):
        load_settings(WordSample, "", {"LAMPLIGHTER_SUB": "1", "LAMPLIGHTER_SUB__PORT": "2"})


def test_a_bad_setting_is_named():
    with pytest.raises(SettingsInvalid, match=r"sub\.port"):
        load_settings(WordSample, "[sub]\nport = 'many'\n", {})


def test_an_endpoint_file_is_read_and_a_mistake_in_it_is_named():
    endpoint = parse_endpoint(
        'name = "echo"\nimage = "e"\n[timeouts]\nbase_s = 5.0\n[process]\ncommand = ["python3", "main.py"]\n'
    )
    assert (endpoint.effective_pool, endpoint.timeouts.base_s, endpoint.process.command[0]) == ("echo", 5.0, "python3")
    with pytest.raises(EndpointInvalid, match="resources"):
        parse_endpoint('name = "echo"\nimage = "e"\n[resources]\nvram = 5\n')


ENDPOINT_FAULTS = {
    "[resources]\nmemroy_mb = 512\n": r"resources\.memroy_mb is an unknown field \(did you mean memory_mb\?\): "
    r"allowed are vram_mb, gpus, .*disk_mb$",
    "[resources]\ncpus = 0\n": r"^resources\.cpus is 0: it must be a number above 0$",
    "[resources]\nvram_mb = '1'\n": r'^resources\.vram_mb is "1": it must be a whole number of at least 0$',
    "[resources]\ncpus = inf\n": r"^resources\.cpus is inf: it must be a finite number$",
    "[resources]\ncpus = nan\n": r"^resources\.cpus is nan: it must be a number above 0$",
    "[resources]\nmemory_mb = 99999999999999999999\n": r"^resources\.memory_mb is 9+: it must be at most 10+$",
    "memory_mb = 512\n": r"^memory_mb belongs to the table \[resources\]: write it below that line$",
    "warm = 1\n": r"^warm is 1: it must be true or false$",
    "input = 3\n": r"^input is 3: it must be a table$",
    "input_seconds = 'length'\n[input]\nadditionalProperties = false\n[input.properties.seconds]\ntype = 'number'\n": (
        r'^input_seconds is "length": it must be a field of input, which has seconds$'
    ),
    "[reuse]\nscope = '\u043ewner'\n": (
        r"^reuse\.scope is .* \(its .* is CYRILLIC SMALL LETTER O\): it must be endpoint or owner$"
    ),
    "n\u0430me = 'echo'\n": r"^it is not valid TOML: ",
    "'n\u0430me' = 'echo'\n": r"^n.me is an unknown field \(its .* CYRILLIC SMALL LETTER A\) \(did you mean name\?\)",
    '"\\u0000" = 1\n': r'^"\\u0000" is an unknown field: allowed are name, image',
    "[labels]\n'a b' = 'x'\n": r'^labels\."a b" has a name that is not allowed: it must be a name of up to 63 letters',
    '[labels]\na = "x\\u0000"\n': r'^labels\.a is "x\\u0000": remove the NUL character$',
    '[labels]\na = "x\\n"\n': r'^labels\.a is "x\\n": it must be text without control characters$',
    "gpu = ['\u0420TX']\n[resources]\ngpus = 1\n": r"^gpu\[0\] is .*CYRILLIC.*: it must be a name in ASCII, as in",
    "gpu = 'RTX 4090'\n": r'^gpu is "RTX 4090": it must be a list, each item the name of a GPU model',
    "compute_capability = 8.0\n": r'^compute_capability is 8\.0: it must be text with two numbers, as in "8\.0"$',
    "secrets = [" + "'A'," * 21 + "]\n": r"^secrets is .*: it must be a list of at most 20 items, each item 1 to 64",
    "network = 'bridge'\n": r'^network is "bridge": it must be egress or none$',
    "runtime = 'docker'\n": r'^runtime is "docker": it must be kata, runc or runsc$',
    "network = 'egress'\nallow = ['https://a.com']\n": r'^allow\[0\] is "https://a\.com": it must be a host name',
    "[process]\ncommand = []\n": r"^process\.command is \[\]: it must begin with a program, as in",
    '[process]\ncommand = ["a\\u0000"]\n': r"^process\.command\[0\] is .*: remove the NUL character$",
    "[[caches]]\nname = 'k'\npath = '/k'\nmax_mb = '5'\n": (
        r'^caches\[0\]\.max_mb is "5": it must be a whole number from 1 to 1000000$'
    ),
    "[[caches]]\nname = 'k'\npath = '/k'\nmax_mb = 5\nenv = ['A', 'LAMPLIGHTER_X']\n[env]\nA = '1'\n": (
        r"^caches\[0\]\.env names A, which is set in \[env\] too: remove one; caches\[0\]\.env names LAMPLIGHTER_X, and"
    ),
    "[[volumes]]\nname = 'w'\npath = '/w'\nfiles = []\n": (
        r"^volumes\[0\]\.files is \[\]: it must be a list of 1 to 1000 items, each item a table$"
    ),
    "[[volumes]]\nname = 'w'\npath = '/w'\n[[volumes.files]]\npath = 'a'\nurl = 'https://'\n"
    f"sha256 = '{'a' * 64}'\n": r'^volumes\[0\]\.files\[0\]\.url is "https://": it must be an address with the name',
    "[process]\ncommand = 'main.py'\n": r'^process\.command is "main\.py": it must be a list, each item text$',
    "[env]\nPORT = 8080\n": r"^env\.PORT is 8080: it must be text of at most 32768 characters, without NUL$",
    "[env]\n'A-B' = '1'\n": r"^env\.A-B has a name that is not allowed: it must be 1 to 100 characters of A-Z",
    "[env]\nLAMPLIGHTER_JOB = '/'\n": r"^env\.LAMPLIGHTER_JOB has a name that is not allowed: .*not LAMPLIGHTER_…",
    "[env]\nCUDA_VISIBLE_DEVICES = ''\n": r"^env\.CUDA_VISIBLE_DEVICES has a name that is not allowed",
    '[env]\nA = "\\u0000"\n': r"^env\.A is .*without NUL$",
    "pool = 'a b'\n[timeouts]\nstal_s = 1\n": r"^timeouts\.stal_s is an unknown field .*; pool is \"a b\": it must be",
}


@pytest.mark.parametrize("text", ENDPOINT_FAULTS)
def test_each_wrong_key_of_an_endpoint_file_is_named_with_what_is_allowed(text: str):
    with pytest.raises(EndpointInvalid, match=ENDPOINT_FAULTS[text]) as refused:
        parse_endpoint(f"name = 'echo'\nimage = 'e'\n{text}")
    assert str(refused.value).isprintable(), "one line, as it is shown"
