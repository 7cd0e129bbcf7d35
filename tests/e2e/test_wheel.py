"""Tests an installed wheel in an empty folder outside the repository."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import httpx
import pytest
import yaml

from pipeline.kafka.embedded.broker import free_port
from pipeline.registry import declared_destinations
from tests.roles import free_admin_listen, wait_until

ROOT = Path(__file__).parent.parent.parent
UV = Path(sys.executable).parent / "uv"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a new virtual environment, and return the folder that it is in.

    The environment sees the locked packages of this one, but not its editable installation: a path in a .pth file adds a
    folder without the .pth files that the folder holds.
    """
    folder = tmp_path_factory.mktemp("wheel")
    built_for = ("--python", sys.executable)
    uv("build", "--wheel", "--offline", "--no-build-isolation", *built_for, "--out-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("*.whl")
    uv("venv", "--offline", *built_for, str(folder / "venv"))
    uv("pip", "install", "--offline", "--no-deps", "--python", str(folder / "venv"), str(wheel))
    (installed,) = (folder / "venv" / "lib").glob("python3.*/site-packages")
    (installed / "locked_packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return installed


def uv(*arguments: str) -> None:
    done = subprocess.run([str(UV), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def program(site: Path, name: str) -> str:
    return str(site.parent.parent.parent / "bin" / name)


def environment() -> dict[str, str]:
    """Leave out what could lead to the repository, or give a variable of the example a value."""
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}


def run(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [program(site, "hitrouter"), *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=200, check=False
    )


@pytest.mark.parametrize("package", ["pipeline", "destinations", "schemas"])
def test_packages_come_from_the_wheel_and_are_marked_as_typed(package: str, site: Path, tmp_path: Path) -> None:
    code = f"import {package}; print({package}.__path__[0])"
    found = subprocess.run(
        [program(site, "python"), "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()) == site / package
    assert (site / package / "py.typed").is_file()


def test_the_command_shows_the_version_of_the_wheel(site: Path, tmp_path: Path) -> None:
    (metadata,) = site.glob("hitrouter-*.dist-info")
    version = metadata.name.removeprefix("hitrouter-").removesuffix(".dist-info")
    assert run(site, tmp_path, "--version").stdout == f"hitrouter, version {version}\n"


def test_validate_checks_a_file_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    file = tmp_path / "hitrouter.yaml"
    file.write_text(
        "kafka: {bootstrap_servers: embedded}\n"
        "projects: {shop: {tokens: [secret]}}\n"
        "connections: {crm: {destination: Webhook, settings: {url: 'https://crm.example/hits'}}}\n"
    )
    done = run(site, tmp_path, "validate")
    assert (done.returncode, done.stderr) == (0, "") and "is valid" in done.stdout
    file.write_text("connections: {crm: {destination: Webhok}}\n")
    done = run(site, tmp_path, "validate")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "did you mean 'Webhook'?" in done.stderr


def test_destinations_lists_those_of_the_wheel(site: Path, tmp_path: Path) -> None:
    listed = re.findall(r"^(\S+(?: \S+)*) {2,}", run(site, tmp_path, "destinations").stdout, re.MULTILINE)
    assert listed == sorted(declared_destinations())


@pytest.mark.parametrize("name", ["Slack", "Webhook"])
def test_destinations_shows_an_example_that_the_wheel_holds(name: str, site: Path, tmp_path: Path) -> None:
    shown = run(site, tmp_path, "destinations", name).stdout
    assert shown.startswith(f"{name}: ") and "\nsettings:\n" in shown
    found = re.search(r"example \(.*; more in (.+)\):", shown)
    assert found is not None and Path(found[1]).is_relative_to(site) and Path(found[1]).is_file()


@pytest.mark.parametrize("name", ["config", "routed-hit"])
def test_schema_prints_a_schema_that_the_wheel_holds(name: str, site: Path, tmp_path: Path) -> None:
    assert json.loads(run(site, tmp_path, "schema", name).stdout)


def example_on_free_ports(site: Path, folder: Path) -> Path:
    settings = yaml.safe_load((site / "pipeline" / "packaged_files" / "examples" / "hitrouter.yaml").read_text())
    settings["kafka"]["listen"] = f"127.0.0.1:{free_port()}"
    settings["intake"]["listen"] = f"127.0.0.1:{free_port()}"
    settings["admin"]["listen"] = free_admin_listen()
    file = folder / "my own.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def test_demo_adds_up_and_writes_both_kinds_of_files(site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    done = run(site, folder, "demo", "--once", "-c", str(example_on_free_ports(site, tmp_path)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything adds up." in done.stdout
    assert "WRONG" not in done.stdout
    assert "curl" not in done.stdout, "without instructions, as the demo has ended"
    assert {path.name for path in folder.iterdir()} == {"data"}, "it writes below the current folder"
    assert list((folder / "data" / "archive").glob("*.parquet"))
    lines = [line for file in (folder / "data" / "log").glob("*.jsonl") for line in file.read_text().splitlines()]
    assert {json.loads(line)["projectId"] for line in lines} == {"blog"}
    hit_ids = [json.loads(line)["hitId"] for line in lines]
    assert len(hit_ids) == len(set(hit_ids))


def test_demo_shows_new_hits_and_its_commands_work_in_another_terminal(site: Path, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "empty", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    file = example_on_free_ports(site, tmp_path)
    output = tmp_path / "demo.txt"
    with output.open("wb") as stream:
        command = [program(site, "hitrouter"), "demo", "-c", str(file)]
        unbuffered = {**environment(), "PYTHONUNBUFFERED": "1"}
        demo = subprocess.Popen(command, cwd=folder, env=unbuffered, stdout=stream, stderr=stream)
    try:

        def printed(text: str) -> bool:
            assert demo.poll() is None, output.read_text()
            return text in output.read_text()

        wait_until(lambda: printed("export WEBHOOK_URL="), "the demo's instructions", 150)
        text = output.read_text()
        assert "Everything adds up." in text and "Traceback" not in text
        assert {path.name for path in folder.iterdir()} == {"data"}, "it writes below the current folder"
        assert re.findall(r"export (\w+)=\S+", text) == ["SHOP_TOKEN", "BLOG_TOKEN", "WEBHOOK_URL"]
        curl = re.search(r"  (curl .*) \\\n(    -d .*)", text)
        assert curl is not None
        sent = shlex.split(curl[1] + curl[2])
        url = next(part for part in sent if part.startswith("http://"))
        body, token = sent[sent.index("-d") + 1], sent[sent.index("-u") + 1].removesuffix(":")
        headers = {"content-type": "application/json"}
        for _ in range(2):
            assert httpx.post(url, content=body, auth=(token, ""), headers=headers).status_code == 204
        assert httpx.post(url, content="{}", auth=(token, ""), headers=headers).status_code == 400
        wait_until(lambda: printed("a duplicate, not routed again"), "the second hit")
        lines = [line for line in output.read_text().splitlines() if "  my-first  " in line]
        assert [re.split(" {2,}", line)[1:] for line in lines] == [
            ["Tried", "my-first", "to analytics, archive, crm, everything"],
            ["Tried", "my-first", "a duplicate, not routed again"],
        ]
        printed_commands = re.findall(r"^  (\S+/hitrouter (?:explain|ledger|tail) .*)$", text, re.MULTILINE)
        assert len(printed_commands) == 4
        shown = {}
        for line in printed_commands:
            started, *arguments = shlex.split(line)
            assert started == program(site, "hitrouter")
            if arguments[0] != "tail":
                shown[arguments[0]] = run(site, elsewhere, *arguments)
            elif "--refused" in arguments:
                shown["refused"] = run(site, elsewhere, *arguments, "--limit", "6")
        assert "crm: delivered" in shown["explain"].stdout, shown["explain"].stderr
        assert "Everything adds up." in shown["ledger"].stdout
        assert "400 invalid_hit" in shown["refused"].stdout and "401 unauthorized" in shown["refused"].stdout
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 0
        assert "Traceback" not in output.read_text()
    finally:
        demo.kill()
        demo.wait()
