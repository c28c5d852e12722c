"""The page in a real browser: no errors, nothing fetched, and the colours that the voxels give."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from report_pages import Page, decoded

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium here; .ci/report installs one")

# What a reader does, and what the page then is, as JSON in the page itself.
_PROBE = """
<script>
addEventListener("load", () => {
  const found = {};
  const images = [...document.images];
  found.broken = images.filter((i) => !i.complete || !i.naturalWidth).map((i) => i.alt);
  found.images = images.length;
  found.sections = [...document.querySelectorAll("section")].map((s) => s.id);
  found.empty = [...document.querySelectorAll("section")].filter((s) => s.offsetHeight < 80);
  found.fetched = performance.getEntriesByType("resource").map((r) => r.name)
    .filter((name) => !name.startsWith("data:"));
  found.overflow = document.documentElement.scrollWidth - innerWidth;
  const root = document.documentElement, layer = document.querySelector(".layer.fixed");
  const stack = document.querySelector(".stack");
  const box = stack.getBoundingClientRect();
  found.box = [box.left, box.top, box.width, box.height].map((v) => v + 0);
  found.colour = getComputedStyle(layer).backgroundColor;
  document.querySelector("[data-value=red]").click();
  found.red = getComputedStyle(layer).backgroundColor;
  document.querySelector("[data-value=checker]").click();
  found.mask = getComputedStyle(document.querySelector(".layer.moving")).maskImage;
  found.pressed = [...document.querySelectorAll("[aria-pressed=true]")].map((b) => b.textContent);
  stack.click();
  const flickers = () => getComputedStyle(stack.querySelector(".moving")).animationName;
  found.kept = flickers();
  stack.click();
  found.released = flickers();
  stack.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true}));
  found.by_key = flickers();
  dispatchEvent(new Event("beforeprint"));
  found.open = [...document.querySelectorAll("details")].map((d) => d.open);
  const told = document.createElement("pre");
  told.id = "found";
  told.textContent = JSON.stringify(found);
  document.body.append(told);
});
</script>
"""


def browse(page: Path, *words: str, width: int = 1240) -> subprocess.CompletedProcess[str]:
    """Open a page without a screen."""
    profile = page.parent / "profile"
    return subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            f"--user-data-dir={profile}",
            f"--window-size={width},2400",
            *words,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def console(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def probe(registered: Path, folder: Path, width: int = 1240) -> dict[str, Any]:
    """Open a copy of the page that says what it is."""
    page = folder / "report.html"
    text = (registered / "report.html").read_text().replace("</body>", f"{_PROBE}</body>")
    page.write_text(text)
    done = browse(page, "--dump-dom", width=width)
    assert console(done) == []
    told = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told is not None
    found: dict[str, Any] = json.loads(unescape(told[1]))
    return found


@pytest.fixture(scope="module")
def found(registered: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return probe(registered, tmp_path_factory.mktemp("browser"))


def test_everything_is_there(found: dict[str, Any]) -> None:
    assert found["sections"][0] == "verdict"
    assert len(found["sections"]) == 7
    assert found["empty"] == []
    assert found["images"] > 20
    assert found["broken"] == []
    assert found["fetched"] == []
    assert found["overflow"] <= 0


def test_pictures_change_as_they_are_asked_to(found: dict[str, Any]) -> None:
    assert found["colour"] == "rgb(255, 0, 255)"
    assert found["red"] == "rgb(255, 0, 0)"
    assert "conic-gradient" in found["mask"]
    assert found["pressed"] == ["Checkerboard", "Red and green"]
    flickering = [found[name] for name in ("kept", "released", "by_key")]
    assert flickering == ["flicker", "none", "flicker"]
    assert found["open"] == [True, True]


def test_it_fits_a_narrow_screen(registered: Path, tmp_path: Path) -> None:
    assert probe(registered, tmp_path, width=500)["overflow"] <= 0


def test_colours_are_those_of_the_voxels(
    registered: Path, found: dict[str, Any], tmp_path: Path
) -> None:
    """Magenta is the fixed image and green the moving one, each as bright as it is."""
    page = Path(shutil.copy(registered / "report.html", tmp_path))
    shot = tmp_path / "page.png"
    done = browse(page, f"--screenshot={shot}")
    assert console(done) == []
    left, top, width, height = (round(v) for v in found["box"])
    picture = 255 * imread(shot)[top + 4 : top + height - 4, left + 4 : left + width - 4]
    red, green, blue = np.moveaxis(picture[..., :3], -1, 0)
    np.testing.assert_allclose(red, blue, atol=1)
    fixed, moving = (decoded(image["src"]) for image in Page(page).all("img")[:2])
    assert abs(red.mean() - fixed.mean()) < 6
    assert abs(green.mean() - moving.mean()) < 6
    rows = np.linspace(0, fixed.shape[0] - 1, picture.shape[0]).round().astype(int)
    columns = np.linspace(0, fixed.shape[1] - 1, picture.shape[1]).round().astype(int)
    pick = np.ix_(rows, columns)
    assert np.corrcoef(red.ravel(), fixed[pick].ravel())[0, 1] > 0.95
    assert np.corrcoef(green.ravel(), moving[pick].ravel())[0, 1] > 0.95
