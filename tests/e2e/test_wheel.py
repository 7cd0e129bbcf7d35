"""Tests an installed wheel in an empty folder outside the repository."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest
import yaml

from pipeline.kafka.embedded.broker import free_port
from tests.roles import free_admin_listen, wait_until

ROOT = Path(__file__).parent.parent.parent
UV = Path(sys.executable).parent / "uv"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel and unpack it as an installer does."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        *(str(UV), "build", "--wheel", "--offline", "--no-build-isolation", "--python", sys.executable),
        *("--out-dir", str(folder), str(ROOT)),
    ]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder / "site")
    return folder / "site"


def environment(site: Path) -> dict[str, str]:
    """Put the wheel before the editable installation; set no variable of the example."""
    return {**os.environ, "PYTHONPATH": str(site)}


def run(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(site), capture_output=True, text=True, timeout=200, check=False
    )


def test_tests_use_the_wheel(site: Path, tmp_path: Path) -> None:
    code = "import pipeline, destinations; print(pipeline.__file__, destinations.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(site), capture_output=True, text=True, check=True
    )
    assert found.stdout.count(str(site)) == 2


@pytest.mark.parametrize("package", ["pipeline", "destinations", "schemas"])
def test_packages_of_the_wheel_are_marked_as_typed(site: Path, package: str) -> None:
    assert (site / package / "py.typed").is_file()


def test_destinations_command_shows_the_example(site: Path, tmp_path: Path) -> None:
    shown = run(site, tmp_path, "destinations", "Slack").stdout
    found = re.search(r"example \(.*; more in (.+)\):", shown)
    assert found is not None and Path(found[1]).is_relative_to(site) and Path(found[1]).is_file()


def example_on_free_ports(site: Path, folder: Path) -> Path:
    settings = yaml.safe_load((site / "pipeline" / "packaged_files" / "examples" / "hitrouter.yaml").read_text())
    settings["kafka"]["listen"] = f"127.0.0.1:{free_port()}"
    settings["intake"]["listen"] = f"127.0.0.1:{free_port()}"
    settings["admin"]["listen"] = free_admin_listen()
    file = folder / "my own.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def test_demo_shows_new_hits_and_its_commands_work_in_another_terminal(site: Path, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "empty", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    file = example_on_free_ports(site, tmp_path)
    output = tmp_path / "demo.txt"
    with output.open("wb") as stream:
        command = [sys.executable, "-u", "-m", "pipeline", "demo", "-c", str(file)]
        demo = subprocess.Popen(command, cwd=folder, env=environment(site), stdout=stream, stderr=stream)
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
        printed_commands = re.findall(r"^  (\S+ -m pipeline (?:explain|ledger|tail) .*)$", text, re.MULTILINE)
        assert len(printed_commands) == 4
        shown = {}
        for line in printed_commands:
            arguments = shlex.split(line)[3:]
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
