"""What `up` runs, before anything runs."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.models import Config
from pipeline.supervisor import Supervisor


def test_the_intake_has_as_many_processes_as_the_file_says_each_with_its_own_slot() -> None:
    config = Config.model_validate({"intake": {"workers": 3}})
    children = Supervisor(Path("hitrouter.yaml"), config).children
    assert [child.name for child in children] == ["intake-0", "intake-1", "intake-2", "route-0", "deliver-0"]
