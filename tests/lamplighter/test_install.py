"""`install` and `uninstall`: what they write, that systemd accepts it, and that nothing is left."""

import json
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edge.settings import EdgeSettings
from lamplighter.cli import main, service_places
from lamplighter.cli.service_places import MANIFEST_FILE, InstallFailed, check_program_reachable
from lamplighter.cli.service_units import Role, ServicePlan, render_settings, render_units
from runner.settings import IMAGES_DIR
from schemas.settings_loader import load_settings, unknown_settings
from tests.support.doc_pages import DOCS, read_blocks
from tests.support.service_unit import parse_unit
from tests.support.systemd_analyze import analyze

ROLES = [str(role) for role in Role]
UNITS = "etc/systemd/system"
# The highest exposure that `systemd-analyze security` may find, of 10. See docs/install.md for what stays open.
EXPOSURE = {Role.EDGE: 2.0, Role.RELAY: 2.0, Role.BACKUP: 2.0, Role.RUNNER: 3.0}
EXPOSURE_OF_PROCESSES = 8.5


def lamplighter(*words: str | Path, **environ: str) -> Result:
    return CliRunner().invoke(main, [*map(str, words)], env=environ)


def installed(root: Path, *words: str | Path) -> dict[str, list[str]]:
    """Install below `root`; return what it answers."""
    done = lamplighter("install", *words, "--system", "--root", root, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def files_in(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install every role below one folder."""
    root = tmp_path_factory.mktemp("machine")
    for role in ROLES:
        installed(root, role)
    return root


def test_systemd_accepts_every_unit(machine: Path):
    units = sorted((machine / UNITS).iterdir())
    assert [unit.name for unit in units] == [
        *("lamplighter-backup.service", "lamplighter-backup.timer", "lamplighter-edge.service"),
        *("lamplighter-relay.service", "lamplighter-runner.service"),
    ]
    assert analyze("verify", "--man=no", *units) == ""


@pytest.mark.parametrize("role", EXPOSURE)
def test_a_unit_is_no_more_exposed_than_the_page_says(role: Role, tmp_path: Path):
    plan = ServicePlan(
        role=role,
        argv=("/bin/true",),
        data=Path("/var/lib/lamplighter/x"),
        state="lamplighter/x",
        user="lamplighter",
        groups=("docker",) if role is Role.RUNNER else (),
    )
    check_exposure(plan, tmp_path, EXPOSURE[role])


def test_a_runner_of_processes_keeps_the_rights_that_its_jobs_need(tmp_path: Path):
    plan = ServicePlan(
        role=Role.RUNNER, argv=("/bin/true",), data=Path("/x"), state="x", user="root", isolated_jobs=False
    )
    (text,) = render_units(plan).values()
    assert not {"CapabilityBoundingSet", "RestrictNamespaces", "SystemCallFilter", "PrivateTmp"} & set(parse_unit(text))
    check_exposure(plan, tmp_path, EXPOSURE_OF_PROCESSES)


def check_exposure(plan: ServicePlan, folder: Path, most: float) -> None:
    unit = folder / plan.role.service
    unit.write_text(render_units(plan)[plan.role.service])
    assert "Overall exposure level" in analyze("security", "--offline=yes", f"--threshold={most * 10:.0f}", unit)


def test_a_runner_s_jobs_outlive_it_and_the_boot_does_not_wait_for_it(machine: Path):
    runner = parse_unit((machine / UNITS / "lamplighter-runner.service").read_text())
    assert (runner["KillMode"], runner["Restart"], runner["Type"]) == (["process"], ["always"], ["notify"])
    assert {"docker.service", "multi-user.target"} <= set(runner["After"][0].split())
    assert "docker.service" in runner["Wants"][0].split()
    assert runner["TimeoutStartSec"] == ["infinity"]
    assert "PrivateDevices" not in runner  # jobs need the GPUs
    assert "ProtectClock" not in runner  # it would hide them


def test_the_program_of_a_unit_has_an_absolute_path(machine: Path):
    for unit in (machine / UNITS).glob("*.service"):
        (command,) = parse_unit(unit.read_text())["ExecStart"]
        program = command.split()[0].strip('"')
        assert Path(program).is_absolute()
        assert os.access(program, os.X_OK)


@pytest.mark.parametrize("word", ["a b", "50%", "$HOME", 'say "no"', "back\\slash", ""])
def test_a_word_of_a_command_reaches_the_program_as_it_is(word: str, tmp_path: Path):
    plan = ServicePlan(role=Role.RELAY, argv=("/bin/echo", word), data=tmp_path)
    (text,) = render_units(plan).values()
    unit = tmp_path / "word.service"
    unit.write_text(text)
    assert analyze("verify", "--man=no", unit) == ""
    (command,) = parse_unit(text)["ExecStart"]
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    assert command.removeprefix("/bin/echo ").strip('"') == escaped.removesuffix('"')


@pytest.mark.parametrize("role", [Role.EDGE, Role.RUNNER, Role.RELAY])
def test_a_settings_file_changes_nothing_until_it_is_edited(role: Role):
    text = render_settings(role, IMAGES_DIR, is_system=True)
    assert text is not None
    expected = {"endpoints": [str(IMAGES_DIR)]} if role is Role.RUNNER else {}
    assert tomllib.loads(text) == expected


@pytest.mark.parametrize("role", [Role.EDGE, Role.RUNNER, Role.RELAY])
def test_each_line_of_a_settings_file_is_a_setting_when_its_mark_is_removed(role: Role):
    from lamplighter.cli.relay import RelaySettings
    from runner.settings import RunnerSettings

    kinds = {Role.EDGE: EdgeSettings, Role.RUNNER: RunnerSettings, Role.RELAY: RelaySettings}
    lines = (render_settings(role, IMAGES_DIR, is_system=True) or "").splitlines()
    settings = [line.removeprefix("# ") for line in lines if line.startswith("# ") and (" = " in line or "[" in line)]
    text = "\n".join(line for line in settings if " = " in line or line.startswith("["))
    assert load_settings(kinds[role], text, {}) is not None
    assert unknown_settings([kinds[role]], text) == []


def test_print_changes_nothing(tmp_path: Path):
    done = lamplighter("install", "edge", "--system", "--root", tmp_path, "--print")
    assert (done.exit_code, list(tmp_path.iterdir())) == (0, [])
    assert "#### /etc/systemd/system/lamplighter-edge.service" in done.stdout
    assert "#### /etc/lamplighter/edge.toml" in done.stdout


def test_installing_again_keeps_edited_settings_and_the_options_of_before(tmp_path: Path):
    first = installed(tmp_path, "edge", "--public", "gpu.example.com", "--port", "8123")
    assert len(first["written"]) == 2
    again = installed(tmp_path, "edge")
    assert (again["written"], set(again["kept"])) == ([], set(first["written"]))
    settings = tmp_path / "etc/lamplighter/edge.toml"
    settings.write_text("retention_days = 3\n")
    changed = installed(tmp_path, "edge", "--port", "8124")
    assert changed["kept"] == [str(settings)]
    assert settings.read_text() == "retention_days = 3\n"
    (command,) = parse_unit((tmp_path / UNITS / "lamplighter-edge.service").read_text())["ExecStart"]
    assert "--port 8124 --public gpu.example.com" in command


def test_a_certificate_of_one_s_own_is_given_to_up_with_its_path(tmp_path: Path):
    files = ("--cert", tmp_path / "cert.pem", "--key", tmp_path / "key.pem")
    installed(tmp_path, "edge", "--public", "gpu.example.com", *files)
    (command,) = parse_unit((tmp_path / UNITS / "lamplighter-edge.service").read_text())["ExecStart"]
    assert f"--cert {tmp_path}/cert.pem --key {tmp_path}/key.pem" in command
    alone = lamplighter("install", "edge", "--system", "--root", tmp_path / "..", *files, "--print")
    assert (alone.exit_code, "--public" in alone.stderr) == (2, True)


def test_uninstall_takes_what_install_wrote_and_keeps_data_and_edits(tmp_path: Path):
    for role in ROLES:
        installed(tmp_path, role)
    settings, data = tmp_path / "etc/lamplighter/relay.toml", tmp_path / "var/lib/lamplighter/edge"
    settings.write_text('[relay]\nurls = ["https://gpu.example.com"]\n')
    (data / "keys.json").write_text("{}")
    done = lamplighter("uninstall", "--system", "--root", tmp_path, "--json")
    assert (done.exit_code, set(json.loads(done.stdout)["kept"])) == (0, {str(settings), str(data)}), done.stderr
    manifest = f"etc/lamplighter/{MANIFEST_FILE}"
    kept = {"etc/lamplighter/relay.toml", "var/lib/lamplighter/edge/keys.json", manifest}
    assert files_in(tmp_path) == kept
    again = lamplighter("uninstall", "--system", "--root", tmp_path)
    assert (again.exit_code, "nothing is installed here" in again.stderr) == (2, True)
    gone = lamplighter("uninstall", "--data", "--system", "--root", tmp_path)
    assert (gone.exit_code, files_in(tmp_path)) == (0, set()), gone.stderr


def test_uninstall_with_data_leaves_no_folder_of_ours(tmp_path: Path):
    for role in ROLES:
        installed(tmp_path, role)
    done = lamplighter("uninstall", "--data", "--system", "--root", tmp_path)
    assert done.exit_code == 0, done.stderr
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*lamplighter*"))
    assert (files_in(tmp_path), left) == (set(), [])


def test_one_role_can_be_removed_alone(tmp_path: Path):
    installed(tmp_path, "edge")
    installed(tmp_path, "relay")
    done = lamplighter("uninstall", "relay", "--system", "--root", tmp_path)
    assert done.exit_code == 0, done.stderr
    assert {Path(name).name for name in files_in(tmp_path)} == {
        *("lamplighter-edge.service", "edge.toml", MANIFEST_FILE),
    }
    missing = lamplighter("uninstall", "relay", "--system", "--root", tmp_path)
    assert (missing.exit_code, missing.stderr) == (2, "lamplighter: relay is not installed here: edge is\n")


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path):
    installed(tmp_path, "edge")
    (tmp_path / "etc/lamplighter" / MANIFEST_FILE).write_text("{")
    for words in (("install", "edge"), ("uninstall",)):
        done = lamplighter(*words, "--system", "--root", tmp_path)
        assert (done.exit_code, MANIFEST_FILE in done.stderr, len(done.stderr.splitlines())) == (2, True, 1)
    assert (tmp_path / UNITS / "lamplighter-edge.service").exists()


def test_services_of_a_user_need_no_root_and_no_user(tmp_path: Path):
    environ = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": "", "XDG_STATE_HOME": ""}
    done = lamplighter("install", "runner", "--user", "--json", "--no-start", **environ)
    assert done.exit_code == 0, done.stderr
    unit = tmp_path / ".config/systemd/user/lamplighter-runner.service"
    text = parse_unit(unit.read_text())
    said = analyze("verify", "--user", "--man=no", unit, XDG_RUNTIME_DIR=str(tmp_path))
    assert "lamplighter" not in said, said  # it also speaks of the machine's own units
    assert not {"User", "StateDirectory", "ProtectSystem", "CapabilityBoundingSet"} & set(text)
    assert text["WantedBy"] == ["default.target"]
    assert (tmp_path / ".local/state/lamplighter/runner").is_dir()
    assert lamplighter("uninstall", "--user", **environ).exit_code == 0
    assert files_in(tmp_path) == set()


def test_a_program_that_the_service_s_user_cannot_reach_is_refused(tmp_path: Path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    program = folder / "lamplighter"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(InstallFailed, match=f"because {folder} is closed to others"):
        check_program_reachable((str(program),), "lamplighter")


def test_a_link_to_the_program_stays_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pipx and venvs call the program by a link, and an upgrade changes where the link leads."""
    program, link = tmp_path / "target", tmp_path / "lamplighter"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    link.symlink_to(program)
    monkeypatch.setattr(sys, "argv", [str(link), "install"])
    assert service_places.find_own_program() == (str(link),)


def test_the_commands_of_the_page_work_in_their_order(tmp_path: Path):
    """Each `install` and `uninstall` of the page, on a machine below a folder: in the end nothing is left."""
    lines = [line for text in read_blocks(DOCS / "install.md", "sh") for line in text.splitlines()]
    ours = [shlex.split(line) for line in lines if re.search(r"lamplighter (un)?install ", f"{line} ")]
    assert len(ours) >= 6
    for words in ours:
        verb = words.index(next(word for word in words if word.endswith("install") and word != "pip"))
        wanted = [word for word in words[verb:] if word not in {"--join", "-"}]  # no edge is there to join
        data = tmp_path / "var/lib/lamplighter/edge"
        if words[-1] == "uninstall":
            (data / "keys.json").write_text("{}")
        done = lamplighter(*wanted, "--system", "--root", tmp_path)
        assert done.exit_code == 0, (words, done.stderr)
        for unit in (tmp_path / UNITS).glob("lamplighter-*"):
            assert unit.name.split(".")[0] in (DOCS / "install.md").read_text()
    assert files_in(tmp_path) == set()


def test_the_page_names_the_exposure_that_is_tested():
    page = (DOCS / "install.md").read_text()
    for most in {*EXPOSURE.values(), EXPOSURE_OF_PROCESSES}:
        assert f"below {most}" in page
