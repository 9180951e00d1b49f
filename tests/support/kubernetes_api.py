"""A small Kubernetes API server: Pods and PodTemplates of one namespace, over HTTP, with the real one's semantics.

What it keeps of them: names are unique (409), a Pod without a container is refused (422), `uid` and `status` are the
server's, the `preconditions` of a deletion hold (409), a deletion with a grace leaves the Pod until its kubelet has
ended it, one without a node or without a grace removes it at once, a quota is a 403, an unknown token a 401, and a verb
that the role lacks a 403. `fail_next` and `hang_next` break it. A kubelet reads and writes `pods` in memory.
"""

import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support.http_server import serve_app

NAMESPACE = "lamplighter"
PREFIX = f"/api/v1/namespaces/{NAMESPACE}"
REASONS = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "AlreadyExists", 422: "Invalid"}
DEFAULT_GRACE_S = 30
# Those of the shipped role.
PILOT_VERBS = frozenset({"get podtemplates", "get pods", "list pods", "create pods", "delete pods"})


class ApiStatus(Exception):
    """An answer that is a Status object."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class KubernetesApi:
    """The server's objects and its misbehaviour. `verbs`: what the token's role allows, as in `get pods`."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.pod_templates: dict[str, dict[str, Any]] = {}
        self.tokens = {"token-1"}
        self.verbs = PILOT_VERBS
        self.pod_quota = 100
        self.requests: list[str] = []
        self.changed = anyio.Event()
        self._uids = itertools.count(1)
        self._failures: list[int] = []
        self._hangs = 0
        self._closing = anyio.Event()

    def fail_next(self, *codes: int) -> None:
        """Answer the next requests with these codes, one each."""
        self._failures += codes

    def hang_next(self, times: int = 1) -> None:
        """Leave the next requests without an answer."""
        self._hangs += times

    def notify(self) -> None:
        """Let whoever watches look again."""
        self.changed.set()
        self.changed = anyio.Event()

    def set_status(self, name: str, **status: Any) -> None:
        """Change the status of a Pod, as its kubelet or the scheduler does."""
        self.pods[name]["status"].update(status)
        self.notify()

    def remove(self, name: str) -> None:
        """Remove a Pod: its kubelet has ended it."""
        self.pods.pop(name, None)
        self.notify()

    def begin_deletion(self, name: str, grace_s: float) -> None:
        """Mark a Pod as being deleted; one that no kubelet has to end is removed at once."""
        pod = self.pods[name]
        has_ended = pod["status"]["phase"] in {"Succeeded", "Failed"}
        if grace_s == 0 or "nodeName" not in pod["spec"] or has_ended:
            self.remove(name)
            return
        ends = datetime.now(UTC) + timedelta(seconds=grace_s)
        earlier = pod["metadata"].get("deletionTimestamp")
        ends_text = ends.isoformat(timespec="seconds").replace("+00:00", "Z")
        pod["metadata"]["deletionTimestamp"] = min(earlier, ends_text) if earlier else ends_text
        pod["metadata"]["deletionGracePeriodSeconds"] = grace_s
        self.notify()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Serve the API for the duration of the block; yield its address."""
        routes = [
            Route(f"{PREFIX}/pods", self._answer("list pods", self._list_pods), methods=["GET"]),
            Route(f"{PREFIX}/pods", self._answer("create pods", self._create_pod), methods=["POST"]),
            Route(f"{PREFIX}/pods/{{name}}", self._answer("get pods", self._get_pod), methods=["GET"]),
            Route(f"{PREFIX}/pods/{{name}}", self._answer("delete pods", self._delete_pod), methods=["DELETE"]),
            Route(f"{PREFIX}/podtemplates/{{name}}", self._answer("get podtemplates", self._get_template)),
        ]
        async with serve_app(Starlette(routes=routes)) as url:
            try:
                yield url
            finally:
                self._closing.set()

    def _answer(self, verb: str, call: Callable[[str, Mapping[str, Any]], tuple[int, Any]]) -> Any:
        async def endpoint(request: Request) -> Response:
            self.requests.append(verb)
            if self._hangs:
                self._hangs -= 1
                await self._closing.wait()
            body = await request.json() if request.method in {"POST", "DELETE"} and await request.body() else {}
            try:
                self._check(request, verb)
                code, answer = call(request.path_params.get("name", ""), body)
            except ApiStatus as error:
                code, answer = error.code, _status(error.code, str(error))
            return JSONResponse(answer, code)

        return endpoint

    def _check(self, request: Request, verb: str) -> None:
        if self._failures:
            raise ApiStatus(self._failures.pop(0), "the test said so")
        if request.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            raise ApiStatus(401, "Unauthorized")
        if verb not in self.verbs:
            raise ApiStatus(403, f"cannot {verb} in the namespace {NAMESPACE}")

    def _create_pod(self, _: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        name = body["metadata"]["name"]
        if not body["spec"].get("containers"):
            raise ApiStatus(422, f'Pod "{name}" is invalid: spec.containers: Required value')
        if name in self.pods:
            raise ApiStatus(409, f'pods "{name}" already exists')
        if len(self.pods) >= self.pod_quota:
            raise ApiStatus(403, f'pods "{name}" is forbidden: exceeded quota: gpus, requested: pods=1')
        metadata = {**body["metadata"], "uid": f"uid-{next(self._uids)}", "namespace": NAMESPACE}
        self.pods[name] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": dict(body["spec"]),
            "status": {"phase": "Pending", "conditions": []},
        }
        self.notify()
        return 201, self.pods[name]

    def _get_pod(self, name: str, _: Mapping[str, Any]) -> tuple[int, Any]:
        return 200, self._find(self.pods, "pods", name)

    def _list_pods(self, _name: str, _: Mapping[str, Any]) -> tuple[int, Any]:
        return 200, {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": list(self.pods.values())}

    def _get_template(self, name: str, _: Mapping[str, Any]) -> tuple[int, Any]:
        return 200, self._find(self.pod_templates, "podtemplates", name)

    def _delete_pod(self, name: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        pod = self._find(self.pods, "pods", name)
        wanted = (body.get("preconditions") or {}).get("uid")
        if wanted not in {None, pod["metadata"]["uid"]}:
            raise ApiStatus(409, f"the UID in the precondition ({wanted}) does not match")
        self.begin_deletion(name, body.get("gracePeriodSeconds", DEFAULT_GRACE_S))
        return 200, pod

    @staticmethod
    def _find(kept: Mapping[str, Any], kind: str, name: str) -> Any:
        if name not in kept:
            raise ApiStatus(404, f'{kind} "{name}" not found')
        return kept[name]


def _status(code: int, message: str) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "reason": REASONS.get(code, "InternalError"),
        "code": code,
    }
