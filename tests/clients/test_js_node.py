"""The client for JavaScript under Node: its own tests against a real edge, its types, and its size."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from anyio import to_thread

from schemas.version import VERSION
from tests.clients.conftest import ClientWorld
from tests.support.doc_pages import DOCS, read_blocks
from tests.support.node_packages import MODULES_DIR, ROOT, require_node_packages

PACKAGE = ROOT / "clients" / "js"
SIZE_LIMIT_BYTES = 56_000  # a page loads all of it
ONLY_TYPES = "types.js"  # which no module loads
# What a user's TypeScript sees of it: an error here is a missing or a wrong type.
PROGRAM = """
import { Client, Conflict, JobFailed, type Job, type JobEvent } from "lamplighter-client";
const client = new Client({ url: "http://127.0.0.1", key: "lamp_x" });
const job: Job = await client.submit("echo", { text: "hi" }, { tags: { a: "b" }, priority: "low" });
for await (const event of client.follow(job.id)) {
  const seen: JobEvent = event;
  if (seen.kind === "progress") seen.data.fraction.toFixed();
  if (seen.kind === "state") seen.data.status satisfies string;
}
const onAccepted = (accepted: Job) => accepted.missing.join();
await client.submit("echo", { file: new Blob(["x"]) }, { await_input: true, onAccepted });
const digest: string = (await client.upload(new Blob(["x"]), { store: new Map() })).digest;
const since: string | undefined = (await client.pauseEndpoint("echo")).paused?.since;
const isOff: boolean = (await client.webhooks()).some((webhook) => webhook.disabled && webhook.id === since);
if (!(await client.testWebhook("w")).delivered || isOff) await client.addWebhook({ url: "https://a.example" });
try { await client.cancel(job.id); } catch (error) {
  if (error instanceof Conflict) error.code.trim();
  if (error instanceof JobFailed) error.job.id.trim();
}
// @ts-expect-error: there is no such priority
await client.submit("echo", {}, { priority: "urgent" });
console.log(digest);
"""


@pytest.fixture(scope="session", autouse=True)
def node() -> None:
    require_node_packages()


def run(*argv: str | Path, cwd: Path = PACKAGE, **environ: str) -> str:
    """Return what the program prints; it must exit with 0."""
    done = subprocess.run(
        argv, cwd=cwd, capture_output=True, text=True, timeout=100, check=False, env={**os.environ, **environ}
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


async def test_its_own_tests_pass_against_a_real_edge(world: ClientWorld, tmp_path: Path):
    said = await to_thread.run_sync(
        lambda: run(
            "node", "--test", "--test-reporter=tap", "test/client.test.js", FILES=str(tmp_path), **world.environ()
        )
    )
    assert "\n# fail 0" in said
    assert "\n# skipped 0" in said


def test_its_types_hold_and_are_emitted_for_typescript(tmp_path: Path):
    tsc = MODULES_DIR / ".bin" / "tsc"
    run(tsc, "-p", "tsconfig.json", "--outDir", tmp_path / "types")
    package = tmp_path / "node_modules" / "lamplighter-client"
    package.mkdir(parents=True)
    (package / "package.json").write_text((PACKAGE / "package.json").read_text())
    (tmp_path / "types").rename(package / "types")
    (tmp_path / "main.mts").write_text(PROGRAM)
    flags = ("--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022")
    run(tsc, *flags, "--lib", "es2022,dom,dom.iterable,dom.asynciterable", "main.mts", cwd=tmp_path)


def test_it_is_small_and_names_no_other_package():
    sources = {path.name: path.read_text() for path in (PACKAGE / "src").glob("*.js")}
    loaded = {name: text for name, text in sources.items() if name != ONLY_TYPES}
    assert sum(len(text.encode()) for text in loaded.values()) <= SIZE_LIMIT_BYTES
    imported = {
        name
        for text in sources.values()
        for name in re.findall(r'^(?:import|export) .*from "([^"]+)"', text, re.MULTILINE)
    }
    assert imported
    assert all(name.startswith("./") for name in imported)
    assert "dependencies" not in json.loads((PACKAGE / "package.json").read_text())


@pytest.mark.parametrize("program", read_blocks(DOCS / "javascript.md", "js"), ids=lambda text: text.splitlines()[0])
async def test_the_programs_of_the_page_run(world: ClientWorld, tmp_path: Path, program: str):
    (tmp_path / "node_modules").symlink_to(MODULES_DIR)
    (tmp_path / "page.mjs").write_text(program)
    said = await to_thread.run_sync(lambda: run("node", "page.mjs", cwd=tmp_path, **world.environ()))
    assert "file.txt" in said or "done" in said


def test_its_version_is_the_project_s():
    assert json.loads((PACKAGE / "package.json").read_text())["version"] == VERSION
