"""The quickest of the clients; ``check_programs.py`` asks all. And a wrong file is noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from check_programs import report
from programs import check
from transform_files import write_cases


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory.mktemp("cases"))


def test_every_file_gives_the_same_points(manifest: Path) -> None:
    rows = list(check("SimpleITK", manifest))
    assert len(rows) == 98
    for row in rows:
        assert row["error"] <= row["allowed"], row


def test_a_wrong_file_is_noticed(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = json.loads(manifest.read_text())[:1]
    shutil.copytree(cases[0]["folder"], tmp_path / "plain")
    cases[0]["folder"] = str(tmp_path / "plain")
    shutil.copy(tmp_path / "plain" / "field.h5", tmp_path / "plain" / "whole.h5")
    (tmp_path / "manifest.json").write_text(json.dumps(cases))
    rows = list(check("SimpleITK", tmp_path / "manifest.json"))
    assert report("SimpleITK", rows) == 2  # its points, and the image through it
    assert "wrong: plain: whole.h5" in capsys.readouterr().out
