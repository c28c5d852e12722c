"""A report as its readers meet it: what stands on the page, in which order, and what it holds."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from report_pages import HOSTILE, SETTINGS, STEPS, Page, decoded

import itkstream
from itkstream.cli.app import commands
from itkstream.cli.config import read_config
from itkstream.errors import MissingDataError
from itkstream.phantoms import PhantomPair
from itkstream.progress.reporters import LogReporter
from itkstream.report.write import write_report

LOOK = {
    "outcome": "look",
    "reasons": ["a third of the tissue is <b>doubtful</b>"],
    "regions": [
        {
            "box_voxels": [[8, 24], [0, 16], [10, 40]],
            "box_um": [[8, 24], [0, 16], [12, 48]],
            "share_of_tissue": 0.3,
            "what": "other tissue & nothing alike",
        }
    ],
    "share_of_tissue": {"sound": 0.6, "doubtful": 0.3, "unknown": 0.1},
}


@pytest.fixture(scope="module")
def page(registered: Path) -> Page:
    return Page(registered / "report.html")


@pytest.fixture(scope="module")
def numbers(registered: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((registered / "report.json").read_text())
    return found


def test_the_page_stands_alone(registered: Path, page: Page) -> None:
    assert (registered / "report.html").stat().st_size < 10e6
    assert not page.all("link")
    assert not page.all("iframe")
    assert [set(script) for script in page.all("script")] == [set()]
    assert all(str(image["src"]).startswith("data:image/") for image in page.all("img"))
    assert "url(" not in page.all("style")
    links = [str(a["href"]) for a in page.all("a")]
    assert all(link.startswith(("#", "https://doi.org/10.")) for link in links)


def test_sections_come_in_the_order_of_need(page: Page) -> None:
    sections = [section["id"] for section in page.all("section")]
    assert sections == ["verdict", "planes", "error", "steps", "points", "deformation", "made"]
    assert [a["href"] for a in page.all("a")][: len(sections)] == [f"#{id}" for id in sections]


def test_every_picture_has_words(page: Page) -> None:
    pictures = page.all("img")
    assert len(pictures) > 20
    assert all(len(str(image["alt"])) > 15 for image in pictures)
    drawings = [d for d in page.all("div") if "drawing" in str(d.get("class"))]
    assert len(drawings) == 9
    assert all(len(str(d["aria-label"])) > 15 for d in drawings)


def test_names_from_files_are_escaped(registered: Path, page: Page) -> None:
    assert HOSTILE in page.text
    assert not [image for image in page.all("img") if "onerror" in image]
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]


def test_without_a_verdict_nothing_is_claimed(copied: Callable[..., Path]) -> None:
    """As of a registration by an earlier version."""
    folder = copied(verdict=None)
    write_report(folder)
    page = Page(folder / "report.html")
    assert "Not judged" in page.text
    assert json.loads((folder / "report.json").read_text())["verdict"] is None
    assert "Good" not in page.text


@pytest.mark.parametrize(
    ("outcome", "words"),
    [("good", "Good"), ("look", "Look before you use it"), ("failed", "Failed: do not use it")],
)
def test_a_verdict_stands_first_in_words(
    copied: Callable[..., Path], outcome: str, words: str
) -> None:
    folder = copied(verdict={**LOOK, "outcome": outcome})
    write_report(folder)
    page = Page(folder / "report.html")
    assert page.all("section")[0]["class"] == f"verdict {outcome}"
    headline = page.text.index(words)
    assert headline < page.text.index(LOOK["reasons"][0]) < page.text.index("Three planes")
    assert "doubtful: 30 % of the tissue" in page.text


def test_places_of_the_verdict_are_shown(copied: Callable[..., Path], pair: PhantomPair) -> None:
    folder = copied(verdict=LOOK)
    write_report(folder)
    page, numbers = Page(folder / "report.html"), json.loads((folder / "report.json").read_text())
    (place,) = numbers["places"]
    assert place["box_voxels"] == LOOK["regions"][0]["box_voxels"]
    assert "1. other tissue & nothing alike; voxels 8:24, 0:16, 10:40" in page.text
    (picture,) = (
        i for i in page.all("img") if "fixed image in a plane xy through" in str(i["alt"])
    )
    # The images are smaller than a window: all of the plane is seen. Its voxels are the pixels.
    shown = decoded(picture["src"]).astype(float)
    assert shown.shape == (56, 64)
    plane = pair.fixed.read()[:, :, 24].T.astype(float)
    assert np.corrcoef(shown.ravel(), plane.ravel())[0, 1] > 0.99


def test_pictures_are_the_voxels(page: Page, numbers: dict[str, Any], pair: PhantomPair) -> None:
    fixed, moving = (i for i in page.all("img")[:2])
    low, high = numbers["contrast"]["fixed"]
    at = round(numbers["planes"][0]["position_um"] / pair.fixed.spacing[2])
    plane = pair.fixed.read()[:, :, at].T
    wanted = 255 * np.clip((plane - low) / (high - low), 0, 1)
    error = np.abs(decoded(fixed["src"]) - wanted)
    assert np.percentile(error, 95) < 6  # JPEG of quality 90
    low, high = numbers["contrast"]["moving"]
    plane = pair.moving.read()[:, :, at].T
    wanted = 255 * np.clip((plane - low) / (high - low), 0, 1)
    assert np.percentile(np.abs(decoded(moving["src"]) - wanted), 95) < 6


def test_the_page_shows_the_numbers_of_the_run(
    registered: Path, page: Page, numbers: dict[str, Any]
) -> None:
    told = json.loads((registered / "registration.json").read_text())
    steps = {step["name"]: step for step in told["steps"]}
    rows = {row["step"]: row["value"] for row in numbers["local_correlation"]}
    assert rows["deformation"] == steps["deformation"]["local_correlation"]
    assert f"{rows['deformation']:.2f}" in page.text
    (points,) = numbers["key_points"]
    assert f"{points['inliers']} of {points['matches']}" in page.text
    assert points["inliers"] == steps["affine"]["inliers"]
    assert numbers["certificate"] == told["certificate"]
    assert numbers["peak_bytes"] == max(step["peak_bytes"] for step in told["steps"])
    assert f"{numbers['peak_bytes'] / 1e9:.2g} GB at most" in page.text
    assert numbers["parameters"]["steps"] == told["settings"]["steps"]
    for plane in numbers["planes"]:
        assert plane["local_correlation_after"] > plane["local_correlation_before"] + 0.2


def test_key_points_are_drawn_where_they_lie(registered: Path, numbers: dict[str, Any]) -> None:
    html = (registered / "report.html").read_text()
    (points,) = numbers["key_points"]
    agree = len(points["drawn"]["agree"])
    assert agree >= min(10, points["inliers"])
    drawn = re.findall(r'<g class="dots agree">(.*?)</g>', html)
    assert [group.count("<circle") for group in drawn] == [agree] * 3


def test_an_error_map_is_shown_with_its_unknown_part(copied: Callable[..., Path]) -> None:
    error = np.full((12, 14, 16), 1.5, np.float32)  # z, y, x
    error[:, :, 8:] = np.nan
    folder = copied(
        error,
        error={"median_um": 1.5, "p95_um": 1.5, "share_over_2_vox": 0.0, "share_unknown": 0.5},
    )
    write_report(folder)
    page, numbers = Page(folder / "report.html"), json.loads((folder / "report.json").read_text())
    assert [plane["median_error_um"] for plane in numbers["planes"][:2]] == [1.5, 1.5]
    assert "No error was predicted" not in page.text
    first = next(i for i in page.all("img") if str(i["alt"]).startswith("Predicted error"))
    colours = decoded(first["src"])
    known, unknown = colours[:, :30], colours[:, 34:]
    assert len(np.unique(known.reshape(-1, 4), axis=0)) == 1
    assert set(np.unique(unknown[..., 3])) == {0, 255}  # stripes


def test_without_an_error_map_that_is_said(page: Page, numbers: dict[str, Any]) -> None:
    assert "No error was predicted" in page.text
    assert numbers["error"] is None
    assert [plane["median_error_um"] for plane in numbers["planes"]] == [None] * 3


def test_chance_is_drawn_where_it_was_measured(copied: Callable[..., Path]) -> None:
    folder = copied(error={"chance": {"local_correlation_mean": 0.043}})
    write_report(folder)
    page = Page(folder / "report.html")
    assert "chance: 0.043" in page.text
    marks = [b for b in page.all("b") if b.get("title") == "chance"]
    assert {b["style"] for b in marks} == {"left: 4.3%"}


def test_landmarks_are_told(copied: Callable[..., Path]) -> None:
    rows = [
        {"name": str(k), "error_um": float(k), "trust": 1.0, "held_out": k > 3} for k in range(1, 7)
    ]
    folder = copied(landmarks=rows)
    write_report(folder)
    text = Page(folder / "report.html").text.replace("\xa0", " ")
    assert "Landmarks: 3, off by 2 µm in the median, 3 µm at most." in text
    assert "Landmarks that no step saw: 3, off by 5 µm in the median, 6 µm at most." in text


def test_methods_name_what_was_done(page: Page) -> None:
    assert "Gauss-Newton descent on squared local correlation [4]" in page.text
    assert "10.1016/j.media.2007.06.004" in page.text
    assert "Affines of blocks" not in page.text  # no such step was done
    assert "10.1109/TMI.2003.809072" not in page.text


def test_a_deformation_whose_stiffness_was_given_was_judged_not_chosen(
    registered: Path, copied: Callable[..., Path]
) -> None:
    steps = json.loads((registered / "registration.json").read_text())["steps"]
    deformed = next(step for step in steps if step["name"] == "deformation")
    deformed["hidden_correlation"] = {"none": 0.3}
    deformed.pop("stiffness", None)
    folder = copied(steps=steps)
    write_report(folder)
    text = Page(folder / "report.html").text
    assert "It was judged by voxels that the descent did not see" in text
    assert "How stiff it is" not in text


def test_the_command_repeats_the_run(registered: Path, numbers: dict[str, Any]) -> None:
    assert f"--config {registered}/registration.json" in unescape(numbers["command"])
    config = read_config(registered / "registration.json")
    assert config.steps == STEPS
    assert config.settings == SETTINGS


def test_a_report_can_be_left_out(registered: Path, pair: PhantomPair, tmp_path: Path) -> None:
    """The folder of a complete run stays that run's."""
    folder = tmp_path / "out"
    shutil.copytree(registered, folder)
    (folder / "report.html").unlink()
    files = registered.parent / HOSTILE / "s0", registered.parent / "moving.n5/s0"
    settings = itkstream.RegisterSettings(blocksize=64, error_map=False, report=False)
    itkstream.register(*files, folder, STEPS, settings)
    assert not (folder / "report.html").exists()
    itkstream.register(*files, folder, STEPS, SETTINGS)
    assert (folder / "report.html").exists()


class Vandal(LogReporter):
    """Makes a file unreadable before the report is written, and keeps what it is told."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.notes: list[str] = []

    def step(self, title: str) -> None:
        if title == "report":
            self.file.write_text("{")

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_report_that_fails_loses_nothing(registered: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(registered, folder)
    (folder / "report.html").unlink()
    files = registered.parent / HOSTILE / "s0", registered.parent / "moving.n5/s0"
    told = Vandal(folder / "aligned.ome.zarr/zarr.json")
    done = itkstream.register(*files, folder, STEPS, SETTINGS, reporter=told)
    assert done.facts["certificate"]["passed"]
    assert told.notes[-1].startswith("no report was written: ")
    assert not (folder / "report.html").exists()


def test_images_that_are_gone_are_asked_for(copied: Callable[..., Path], pair: PhantomPair) -> None:
    folder = copied()
    file = folder / "registration.json"
    known = json.loads(file.read_text())
    known["moving"] |= {"name": "gone.n5/s0", "opened": {"path": "gone.n5/s0"}}
    file.write_text(json.dumps(known))
    with pytest.raises(MissingDataError, match=r"moving image .* gone\.n5/s0"):
        write_report(folder)
    assert write_report(folder, (pair.fixed, pair.moving)).is_file()


def test_the_command_makes_it_again(copied: Callable[..., Path]) -> None:
    folder = copied()
    (folder / "report.html").unlink()
    done = CliRunner().invoke(commands, ["report", str(folder)])
    assert done.exit_code == 0
    assert done.output.strip() == f"written: {folder}/report.html"
    assert (folder / "report.html").is_file()


def test_the_command_takes_images_that_were_moved(copied: Callable[..., Path]) -> None:
    folder = copied()
    file = folder / "registration.json"
    known = json.loads(file.read_text())
    place = known["fixed"]["opened"]["path"]
    known["fixed"] |= {"name": "gone.n5/s0", "opened": {"path": "gone.n5/s0"}}
    file.write_text(json.dumps(known))
    assert isinstance(
        CliRunner().invoke(commands, ["report", str(folder)]).exception, MissingDataError
    )
    done = CliRunner().invoke(commands, ["report", str(folder), "--fixed", place])
    assert done.exit_code == 0


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="no folder that `itkstream register` wrote"):
        write_report(tmp_path)
