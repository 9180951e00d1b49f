"""`/v1/endpoints`: the endpoints of the settings and of the hosts, with the JSON Schema of each input."""

from typing import Any

from litestar import post
from litestar.params import FromPath
from msgspec import Struct, field

from edge.core.concurrency import translate_errors
from edge.hosts.endpoints import do_programs_differ, localize_schema
from edge.http.auth import require_scope
from edge.http.dependencies import AnyRequest, EdgeServices, LanguageDep, ServicesDep, get_or_head, record_audit_event
from schemas.credentials import Scope
from schemas.endpoint import Endpoint
from schemas.installation import AuditAction, Pause
from schemas.job import JobProgram
from schemas.texts import Language


class RunTimeView(Struct, frozen=True):
    """The run time of an endpoint: median and 90th percentile of `samples` finished runs."""

    p50_s: float
    p90_s: float
    samples: int


class VolumeFillView(Struct, frozen=True):
    """A volume of an endpoint on a host. `state`, `failure` and the amounts: as in VolumeStatus."""

    names: tuple[str, ...]
    state: str
    percent: int | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None
    failure: str | None = None


class EndpointView(Struct, frozen=True):
    """An endpoint. `hosts`: the hosts that offer it, powered on or not.

    `programs`: what a job runs on each host that told. `sources`: by host, the digest of the folder that the program
    is in, where it came from no registry. `differs`: two hosts have another program or endpoint.toml. `volumes`: those
    of the endpoint on each host that is on.
    `paused`: since when and by whom it is paused; None while it is not. `unmet`: the hosts that do not meet its
    requirements, each with what it lacks.

    `title` and `description`, also those of the input's fields, are in the reader's language, or in English where the
    image has no Chinese. Both languages follow under the same names with `_en` and `_zh`. `run_time`: of its last runs
    on the GPUs that it will run on; None while too few have succeeded.
    """

    name: str
    pool: str
    description: str
    input: dict[str, Any]
    image: str
    warm: bool
    hosts: tuple[str, ...]
    programs: dict[str, JobProgram]
    differs: bool
    title: str = ""
    title_en: str = ""
    title_zh: str = ""
    description_en: str = ""
    description_zh: str = ""
    run_time: RunTimeView | None = None
    paused: Pause | None = None
    unmet: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    volumes: dict[str, list[VolumeFillView]] = field(default_factory=dict)


class EndpointListView(Struct, frozen=True):
    """All endpoints that jobs can name."""

    endpoints: list[EndpointView]


def _to_endpoint_view(services: EdgeServices, endpoint: Endpoint, language: Language) -> EndpointView:
    in_chinese = language is Language.ZH
    usual = services.eta.usual_run_time(endpoint.name)
    return EndpointView(
        name=endpoint.name,
        pool=endpoint.effective_pool,
        title=(in_chinese and endpoint.title_zh) or endpoint.title,
        title_en=endpoint.title,
        title_zh=endpoint.title_zh,
        description=(in_chinese and endpoint.description_zh) or endpoint.description,
        description_en=endpoint.description,
        description_zh=endpoint.description_zh,
        input=localize_schema(endpoint.input, language),
        image=endpoint.image,
        warm=endpoint.warm,
        hosts=tuple(sorted(services.endpoints.hosts_offering(endpoint.name))),
        programs=(programs := services.endpoints.programs(endpoint.name)),
        differs=do_programs_differ(programs, sources := services.endpoints.sources(endpoint.name)),
        run_time=None if usual is None else RunTimeView(round(usual.p50, 3), round(usual.p90, 3), usual.samples),
        paused=services.hosts.pauses.of_endpoint(endpoint.name),
        unmet=services.endpoints.unmet(endpoint.name),
        sources=sources,
        volumes=_list_volumes(services, endpoint.name),
    )


def _list_volumes(services: EdgeServices, endpoint: str) -> dict[str, list[VolumeFillView]]:
    """Return the volumes of the endpoint by host. Why one failed may name a server: it is only in `/v1/hosts`."""
    found = {
        host: [
            VolumeFillView(one.names, one.state, one.percent, one.done_bytes, one.total_bytes, one.failure)
            for one in heartbeat.volumes
            if endpoint in one.endpoints
        ]
        for host, heartbeat in sorted(services.hosts.heartbeats.items())
    }
    return {host: volumes for host, volumes in found.items() if volumes}


@get_or_head("/v1/endpoints", guards=[require_scope(Scope.JOBS_READ)])
async def list_endpoints(services: ServicesDep, language: LanguageDep) -> EndpointListView:
    """List the endpoints, with the JSON Schema of each input."""
    return EndpointListView([_to_endpoint_view(services, endpoint, language) for endpoint in services.endpoints.all()])


@get_or_head("/v1/endpoints/{name:str}", guards=[require_scope(Scope.JOBS_READ)])
async def read_endpoint(services: ServicesDep, language: LanguageDep, name: FromPath[str]) -> EndpointView:
    """Return one endpoint, with the JSON Schema of its input."""
    return _to_endpoint_view(services, services.endpoints.get(name), language)


@post("/v1/endpoints/{name:str}/pause", status_code=202, guards=[require_scope(Scope.POWER)])
async def pause_endpoint(
    request: AnyRequest, services: ServicesDep, language: LanguageDep, name: FromPath[str]
) -> EndpointView:
    """Pause an endpoint: its new jobs are accepted and wait, and its running jobs continue to their end."""
    endpoint = services.endpoints.get(name)
    if services.hosts.pauses.of_endpoint(name) is None:
        with translate_errors():
            await services.hosts.pauses.pause_endpoint(name, request.auth.owner)
        await record_audit_event(request, services, AuditAction.ENDPOINT_PAUSED, name)
        services.power.request_tick()
    return _to_endpoint_view(services, endpoint, language)


@post("/v1/endpoints/{name:str}/resume", status_code=202, guards=[require_scope(Scope.POWER)])
async def resume_endpoint(
    request: AnyRequest, services: ServicesDep, language: LanguageDep, name: FromPath[str]
) -> EndpointView:
    """End the pause of an endpoint, whose jobs start again within seconds."""
    endpoint = services.endpoints.get(name)
    if services.hosts.pauses.of_endpoint(name) is not None:
        with translate_errors():
            await services.hosts.pauses.resume_endpoint(name)
        await record_audit_event(request, services, AuditAction.ENDPOINT_RESUMED, name)
        services.power.request_tick()
    return _to_endpoint_view(services, endpoint, language)


ROUTES = (list_endpoints, read_endpoint, pause_endpoint, resume_endpoint)
