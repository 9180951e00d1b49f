"""What `just mutants` changes, and the tests that must notice: first the file that is most likely to."""

from typing import NamedTuple


class ModuleGroup(NamedTuple):
    """Modules that are counted together, and the files of their tests; `-k` of pytest leaves some out."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]
    keyword: str = ""


FAKE_BUS = "not nats"  # the modules cannot tell the fake from a broker: both pass tests/contract
EDGE_SERVICES = "tests/edge/services"
ROUTES = "tests/edge/routes"

GROUPS: dict[str, ModuleGroup] = {
    "jobs": ModuleGroup(
        ("edge/jobs/service.py",),
        (
            f"{EDGE_SERVICES}/test_job_service.py",
            f"{EDGE_SERVICES}/test_readiness.py",
            f"{EDGE_SERVICES}/test_owner_deletion.py",
            f"{EDGE_SERVICES}/test_quotas.py",
            f"{ROUTES}/test_batches.py",
            "tests/edge/facades/heygem/test_repeated_codes.py",
        ),
        FAKE_BUS,
    ),
    "submission": ModuleGroup(
        ("edge/jobs/submission.py",),
        (
            f"{EDGE_SERVICES}/test_job_service.py",
            f"{EDGE_SERVICES}/test_readiness.py",
            f"{EDGE_SERVICES}/test_fetches.py",
            f"{EDGE_SERVICES}/test_await_input.py",
            "tests/edge/facades/heygem/test_repeated_codes.py",
        ),
        FAKE_BUS,
    ),
    "publish_window": ModuleGroup(
        ("edge/jobs/publish_window.py",),
        (
            f"{EDGE_SERVICES}/test_publish_window.py",
            f"{EDGE_SERVICES}/test_reconciler.py",
            f"{EDGE_SERVICES}/test_job_service.py",
            f"{EDGE_SERVICES}/test_quotas.py",
        ),
        FAKE_BUS,
    ),
    "quotas": ModuleGroup(
        ("edge/owners/quotas.py",),
        (
            f"{EDGE_SERVICES}/test_quotas.py",
            f"{ROUTES}/test_quotas.py",
            f"{ROUTES}/test_request_rate.py",
            "tests/edge/test_settings.py",
        ),
        FAKE_BUS,
    ),
    "uploads": ModuleGroup(
        ("edge/assets/uploads.py",),
        (
            f"{EDGE_SERVICES}/test_uploads.py",
            f"{ROUTES}/test_uploads.py",
            f"{EDGE_SERVICES}/test_quotas.py",
            f"{EDGE_SERVICES}/test_uploads_of_two_edges.py",
        ),
        f"{FAKE_BUS} and not bucket",
    ),
    "assets": ModuleGroup(
        ("edge/assets/service.py",),
        (
            f"{EDGE_SERVICES}/test_assets.py",
            f"{EDGE_SERVICES}/test_owner_deletion.py",
            f"{EDGE_SERVICES}/test_reconciler.py",
            f"{ROUTES}/test_assets.py",
        ),
        FAKE_BUS,
    ),
    "power_state_machine": ModuleGroup(
        ("edge/power/state_machine.py",),
        ("tests/edge/power/test_transitions.py", "tests/edge/power/test_power_scenarios.py"),
    ),
    "power_conditions": ModuleGroup(
        ("edge/power/conditions.py",),
        ("tests/edge/power/test_transitions.py", "tests/edge/power/test_power_scenarios.py"),
    ),
    "verdict": ModuleGroup(
        ("runner/execution/verdict.py",), ("tests/runner/test_verdict.py", "tests/runner/test_execution.py")
    ),
    "fence": ModuleGroup(
        ("runner/execution/durable_state.py", "runner/claiming/loop.py"),
        (
            "tests/runner/test_fence.py",
            "tests/runner/test_claims.py",
            "tests/runner/test_calendar.py",
            "tests/runner/test_execution.py",
            "tests/runner/test_prefetch.py",
            "tests/runner/test_wakes.py",
            "tests/runner/test_reuse.py",
            "tests/runner/test_idle_timer.py",
            "tests/runner/gpu/test_shared_gpu_jobs.py",
        ),
    ),
    "recovery": ModuleGroup(
        ("runner/claiming/recovery.py",),
        ("tests/runner/test_recovery.py", "tests/runner/test_claims.py", "tests/runner/test_warm_pool_engines.py"),
    ),
    "execution": ModuleGroup(
        ("runner/execution/execution.py",),
        (
            "tests/runner/test_execution.py",
            "tests/runner/test_fence.py",
            "tests/runner/test_claims.py",
            "tests/runner/test_recovery.py",
            "tests/runner/test_deadman.py",
            "tests/runner/test_disk.py",
            "tests/runner/gpu/test_faults_mid_job.py",
            "tests/runner/test_warm_pool.py",
            "tests/runner/test_reuse.py",
        ),
    ),
    "cache": ModuleGroup(
        ("runner/assets/cache.py",),
        ("tests/runner/test_inputs.py", "tests/runner/test_assets.py", "tests/runner/test_metrics.py"),
    ),
    "lifecycle": ModuleGroup(
        ("schemas/lifecycle.py",), ("tests/schemas/test_lifecycle.py", "tests/schemas/test_retry_policy.py")
    ),
    "outbound": ModuleGroup(
        (
            "edge/outbound.py",
            "schemas/webhook.py",
        ),
        (
            "tests/edge/outbound/test_addresses.py",
            "tests/edge/outbound/test_guard.py",
            f"{EDGE_SERVICES}/test_fetches.py",
            "tests/edge/webhooks/test_webhook_rules.py",
            "tests/edge/test_settings.py",
        ),
    ),
    "auth": ModuleGroup(
        ("edge/http/auth.py", "edge/owners/signed_credentials.py", "edge/owners/api_keys.py"),
        (
            f"{ROUTES}/test_access.py",
            f"{ROUTES}/test_tokens.py",
            f"{EDGE_SERVICES}/test_keys.py",
            f"{ROUTES}/test_console.py",
            f"{ROUTES}/test_events.py",
            f"{ROUTES}/test_cors.py",
            f"{ROUTES}/test_assets.py",
        ),
    ),
    "bus": ModuleGroup(
        (
            "bus/compare_and_set.py",
            "bus/nats/key_value.py",
            "bus/nats/streams.py",
            "bus/nats/feed.py",
            "bus/nats/replies.py",
            "bus/nats/jetstream.py",
        ),
        (
            "tests/bus/test_compare_and_set.py",
            "tests/bus/test_errors.py",
            "tests/bus/test_following.py",
            "tests/contract/test_bus.py",
            "tests/contract/test_bus_queue.py",
            "tests/contract/test_bus_feed.py",
            "tests/contract/test_bus_tables.py",
            "tests/contract/test_bus_outbox.py",
            "tests/contract/test_bus_audit.py",
            "tests/contract/test_bus_usage.py",
            "tests/bus/test_withdraw.py",
            "tests/bus/test_connection.py",
            "tests/bus/test_erasing.py",
            "tests/bus/test_delete_markers.py",
            "tests/bus/test_rights.py",
            "tests/bus/test_reader.py",
            "tests/bus/test_nudges.py",
        ),
    ),
}
