"""Clients that other people's generators make from /openapi.json, each compiled and run against a real edge."""

import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from anyio import to_thread

from tests.clients.conftest import ClientWorld
from tests.support.node_packages import MODULES_DIR, require_node_packages

TYPESCRIPT = """
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

type Job = components["schemas"]["Job"];
const headers = { Authorization: `Bearer ${process.env.KEY}` };
const client = createClient<paths>({ baseUrl: process.env.URL, headers });
const { data, error } = await client.POST("/v1/jobs", {
  body: { endpoint: "echo", input: { text: "hi", steps: 1 }, tags: { from: "typescript" } },
});
if (!data) throw new Error(`${error.code}: ${error.detail}`);
const ended = await client.GET("/v1/jobs/{job_id}", { params: { path: { job_id: data.id }, query: { wait: 30 } } });
const job: Job | undefined = ended.data;
const refused = await client.POST("/v1/jobs/{job_id}/cancel", { params: { path: { job_id: data.id } } });
const event: components["schemas"]["Event"] | undefined = undefined;
const read = (seen: components["schemas"]["Event"]) => (seen.event === "progress" ? seen.data.fraction : null);
console.log(job?.status, job?.output?.data.text, refused.error?.code, event ? read(event) : "none");
"""

PYTHON = """
import os
from lamplighter_api import AuthenticatedClient
from lamplighter_api.api.jobs import cancel_job, get_job, submit_job
from lamplighter_api.models import Job, Problem, Submission, SubmissionInput

client = AuthenticatedClient(base_url=os.environ["URL"], token=os.environ["KEY"])
given = SubmissionInput.from_dict({"text": "hi", "steps": 1})
submitted = submit_job.sync(client=client, body=Submission(endpoint="echo", input_=given))
assert isinstance(submitted, Job), submitted
job = get_job.sync(submitted.id, client=client, wait=30.0)
assert isinstance(job, Job), job
refused = cancel_job.sync(job.id, client=client)
assert isinstance(refused, Problem), refused
print(job.status, job.output.data["text"], refused.code, "none")
"""
WITHOUT_OPERATIONS = ("/v1/uploads",)  # openapi-python-client knows no body of this media type: use a tus client
SEEN = "succeeded hi job_final none"


@pytest.fixture
async def document(world: ClientWorld, tmp_path: Path) -> Path:
    """Fetch the document of the running edge, without a key."""
    path = tmp_path / "openapi.json"
    async with httpx2.AsyncClient(timeout=60) as client:
        path.write_bytes((await client.get(f"{world.url}/openapi.json")).raise_for_status().content)
    return path


def run(*argv: str | Path, cwd: Path, **environ: str) -> str:
    """Return what the program prints; it must exit with 0."""
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environ}
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=100, check=False, env=environ)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


async def test_a_typescript_program_is_checked_and_submits(world: ClientWorld, document: Path, tmp_path: Path):
    require_node_packages()

    def build_and_run() -> str:
        run(MODULES_DIR / ".bin" / "openapi-typescript", document, "-o", "api.d.ts", cwd=tmp_path)
        (tmp_path / "node_modules").symlink_to(MODULES_DIR)
        (tmp_path / "package.json").write_text('{"type": "module"}')
        (tmp_path / "main.ts").write_text(TYPESCRIPT)
        flags = ("--strict", "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom", "--types", "node")
        run(MODULES_DIR / ".bin" / "tsc", *flags, "--skipLibCheck", "main.ts", cwd=tmp_path)
        return run("node", "main.js", cwd=tmp_path, URL=world.url, KEY=world.key)

    assert (await to_thread.run_sync(build_and_run)).strip() == SEEN


async def test_a_python_client_is_generated_and_submits(world: ClientWorld, document: Path, tmp_path: Path):
    def build_and_run() -> tuple[str, str]:
        argv = ("openapi-python-client", "generate", "--path", document, "--output-path", "lamplighter_api")
        said = run(*argv, "--meta", "none", cwd=tmp_path)
        (tmp_path / "main.py").write_text(PYTHON)
        return said, run(sys.executable, "main.py", cwd=tmp_path, URL=world.url, KEY=world.key)

    said, seen = await to_thread.run_sync(build_and_run)
    warned = [line.split()[3] for line in said.splitlines() if line.startswith("WARNING parsing")]
    assert all(path.startswith(WITHOUT_OPERATIONS) for path in warned), said
    assert seen.strip() == SEEN
    assert len(list((tmp_path / "lamplighter_api" / "models").glob("*problem*.py"))) == 1
