"""`lamplighter new` and `lamplighter try`, as an author of an image uses them."""

import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.docker_images import BASE_IMAGE, docker_url, run_docker
from tests.support.job_user import why_not_nobody

__all__ = ["docker_url"]

DEADLINE_S = 60
needs_job_user = pytest.mark.skipif(
    os.geteuid() == 0 and why_not_nobody() is not None, reason="jobs cannot run as nobody here"
)


def lamplighter(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "lamplighter", *words]
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        argv, cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=DEADLINE_S
    )


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The folder of a new image."""
    made = lamplighter(tmp_path, "new", "capitals")
    assert (made.returncode, made.stdout) == (0, "made capitals. Next: lamplighter try capitals\n"), made.stderr
    return tmp_path / "capitals"


@needs_job_user
def test_a_new_folder_passes_its_own_check(image: Path) -> None:
    tried = lamplighter(image.parent, "try", "capitals", "--engine", "process", "--text", "a b", "-o", "out", "--json")
    assert tried.returncode == 0, tried.stderr
    answer = json.loads(tried.stdout)
    assert (answer["data"], answer["broken_rules"], answer["warm"]) == ({"text": "A B"}, [], True)
    assert (image.parent / "out" / "result.txt").read_text() == "A B\n"
    assert [file["name"] for file in answer["files"]] == ["result.txt"]
    (image / "main.py").write_text("import no_such_module")
    failed = lamplighter(image.parent, "try", "capitals", "--engine", "process")
    assert failed.returncode == 1
    assert "install the module where the program runs" in failed.stdout
    assert "SIGTERM: not checked: the job failed" in failed.stdout


@needs_job_user
def test_a_file_is_given_by_its_path(image: Path) -> None:
    (image.parent / "words.txt").write_text("from a file")
    with (image / "endpoint.toml").open("a") as file:
        file.write('\n[labels]\ndisk = "nvme"\n')
    tried = lamplighter(image.parent, "try", "capitals", "--engine", "process", "--no-stop", "--file", "words.txt")
    assert tried.returncode == 0, tried.stderr
    assert '{"text":"FROM A FILE"}' in tried.stdout
    assert "100% write 3/3" in tried.stderr
    warning = "a host like this machine would not run its jobs, it lacks label disk = nvme (it has no such label)"
    assert warning in tried.stderr  # and it is tried nevertheless


WRONG = {
    "an unknown field": (["--txt", "x"], "capitals has no --txt: it takes --text, --file"),
    "a missing file": (["--file", "nowhere"], "the file does not exist"),
    "a URL": (["--file", "https://example.org/a.txt"], "`try` fetches nothing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_named_before_anything_runs(image: Path, case: str) -> None:
    words, why = WRONG[case]
    tried = lamplighter(image.parent, "try", "capitals", *words)
    assert (tried.returncode, tried.stdout) == (2, "")
    assert why in tried.stderr


def test_each_wrong_key_names_the_file_and_what_is_allowed(image: Path) -> None:
    file = image / "endpoint.toml"
    file.write_text(file.read_text().replace("memory_mb", "memroy_mb"))
    tried = lamplighter(image.parent, "try", "capitals")
    assert tried.returncode == 2
    assert f"{Path('capitals/endpoint.toml')}: resources.memroy_mb is an unknown field" in tried.stderr
    assert "did you mean memory_mb?" in tried.stderr


@pytest.mark.parametrize("name", ["Capitals", "a b", "-x-", "x" * 41])
def test_a_name_that_docker_or_an_endpoint_cannot_have_is_refused(tmp_path: Path, name: str) -> None:
    made = lamplighter(tmp_path, "new", "--", name)
    assert made.returncode == 2
    assert "cannot be the name of an image" in made.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_left_as_it_is(image: Path) -> None:
    (image / "main.py").write_text("mine")
    made = lamplighter(image.parent, "new", "capitals")
    assert made.returncode == 2
    assert "capitals is not empty" in made.stderr
    assert (image / "main.py").read_text() == "mine"


@needs_job_user
def test_a_saved_file_runs_the_job_again(image: Path) -> None:
    argv = [sys.executable, "-m", "lamplighter", "try", "capitals", "--engine", "process", "--no-stop", "--watch"]
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        argv, cwd=image.parent, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        first = read_until_waiting(process)
        main = image / "main.py"
        main.write_text(main.read_text().replace("word.upper()", "word.title()"))
        second = read_until_waiting(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 130
    assert '{"text":"HELLO"}' in first
    assert '{"text":"Hello"}' in second


def read_until_waiting(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("waiting for a change"):
            return "".join(lines)
    raise AssertionError(f"it ended: {''.join(lines)}")


@pytest.mark.docker
def test_a_new_folder_passes_in_docker_and_a_write_to_the_root_is_named(image: Path, docker_url: str) -> None:
    dockerfile, main, config = image / "Dockerfile", image / "main.py", image / "endpoint.toml"
    assert dockerfile.read_text().startswith("FROM python:3.12-slim\n")
    dockerfile.write_text(dockerfile.read_text().replace("FROM python:3.12-slim", f"FROM {BASE_IMAGE}"))
    try:
        tried = lamplighter(image.parent, "try", "capitals", "--engine", "docker", "--json")
        assert tried.returncode == 0, tried.stderr
        assert json.loads(tried.stdout)["warm"] is True
        main.write_text(main.read_text().replace("text = job", 'open("/app/cache", "w").close()\n    text = job'))
        config.write_text(config.read_text().replace("warm = true", "warm = false"))
        tried = lamplighter(image.parent, "try", "capitals", "--engine", "docker", "--json")
    finally:
        run_docker(docker_url, "image", "rm", "--force", "lamplighter-capitals")
    answer = json.loads(tried.stdout)
    assert (tried.returncode, answer["error"]["code"]) == (1, "internal")
    assert [broken["rule"] for broken in answer["broken_rules"]] == ["read_only_root"]


VOLUME_PROGRAM = """
import jobkit


def work(job):
    job.progress(1.0)
    (jobkit.cache("kernels") / "kernel").touch()
    return {"weights": (jobkit.volume("weights") / "model" / "unet.pth").read_text()}


jobkit.run(work)
"""


def weights_toml(url: str, sha256: str) -> str:
    return f"""
[[volumes]]
name = "weights"
path = "/weights"
[[volumes.files]]
path = "model/unet.pth"
url = "{url}"
sha256 = "{sha256}"
[[caches]]
name = "kernels"
path = "/kernels"
max_mb = 1
"""


@pytest.fixture
def lips(image: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an image that needs weights and a cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(image.parent / "user-cache"))
    (image / "main.py").write_text(VOLUME_PROGRAM)
    file = image / "endpoint.toml"
    file.write_text(file.read_text().replace("warm = true", "") + weights_toml("http://127.0.0.1:9/unet", "0" * 64))
    return image


@needs_job_user
def test_a_folder_of_this_machine_is_the_volume_and_keeps_its_modes(lips: Path) -> None:
    weights = lips.parent / "mine" / "weights"
    (weights / "model").mkdir(parents=True)
    (weights / "model" / "unet.pth").write_text("my weights")
    modes = [path.stat().st_mode for path in (weights, weights.parent)]
    words = ("try", "capitals", "--engine", "process", "--no-stop", "--volume", "weights=mine/weights", "--json")
    tried = lamplighter(lips.parent, *words, "--text", "x")
    assert tried.returncode == 0, tried.stderr
    assert json.loads(tried.stdout)["data"] == {"weights": "my weights"}
    assert [path.stat().st_mode for path in (weights, weights.parent)] == modes
    assert [path.stat().st_uid for path in (weights, weights.parent)] == [os.geteuid()] * 2


def test_weights_that_cannot_be_had_are_told_before_the_job(lips: Path) -> None:
    tried = lamplighter(lips.parent, "try", "capitals", "--engine", "process", "--text", "x")
    assert (tried.returncode, tried.stdout) == (2, "")
    assert "127.0.0.1 cannot be reached from the host for model/unet.pth of the volume weights" in tried.stderr
    wrong = lamplighter(lips.parent, "try", "capitals", "--volume", "wieghts=.", "--text", "x")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "give NAME=FOLDER, the name of a volume in endpoint.toml (weights) and a folder" in wrong.stderr


def test_secrets_come_from_the_environment_and_have_the_sizes_of_stored_ones(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = image / "endpoint.toml"
    file.write_text(f'secrets = ["HF_TOKEN"]\n{file.read_text()}')
    missing = lamplighter(image.parent, "try", "capitals", "--engine", "process", "--text", "x")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "which `try` reads from the environment: set HF_TOKEN" in missing.stderr
    monkeypatch.setenv("HF_TOKEN", "short")
    short = lamplighter(image.parent, "try", "capitals", "--engine", "process", "--text", "x")
    assert (short.returncode, short.stdout) == (2, "")
    assert "a secret has 8 to 32768 bytes, as `secrets set` checks: correct the variables HF_TOKEN" in short.stderr


@needs_job_user
def test_weights_are_downloaded_once_for_many_tries(lips: Path) -> None:
    requests: list[str] = []

    class Weights(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.end_headers()
            self.wfile.write(b"weights")

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Weights) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            file, url = lips / "endpoint.toml", f"http://127.0.0.1:{server.server_port}/unet"
            text = file.read_text().replace("http://127.0.0.1:9/unet", url)
            file.write_text(text.replace("0" * 64, hashlib.sha256(b"weights").hexdigest()))
            words = ("try", "capitals", "--engine", "process", "--no-stop", "--json", "--text", "x")
            answers = [json.loads(lamplighter(lips.parent, *words).stdout)["data"] for _ in range(2)]
        finally:
            server.shutdown()
            thread.join()
    assert answers == [{"weights": "weights"}] * 2
    assert requests == ["/unet"]
