"""The tutorial: its notebook against the truth, and its 2021 text, as written, on real images."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt

from itkstream.numerics.evidence.quality import local_correlation_in_tissue, tissue_mask

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "tutorial.ipynb"
SHARED = ROOT.parent / "shared"
TEXT = SHARED / "tutorial-2021.md"
REAL = SHARED / "data" / "easifish"

# What the text says, and what it is here: the names of the package and of the container call; and
# the real pair has one level only.
SUBSTITUTES = {
    r"zarr\.open\(store=zarr\.N5Store\((\w+)\), mode='r'\)": r"itkstream.open_container(\1)",
    r"^import zarr$": "import itkstream",
    r"\bbigstream\b": "itkstream",
}
ONE_LEVEL = {
    r"'/highres'": "'/lowres'",
    r"\[256,\]\*3": "[128,]*3",
    r"slc = 140": "slc = 70",
    r"'resources/": f"'{REAL}/",
}


@pytest.fixture(autouse=True)
def no_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pictures are drawn and not shown; results go to a folder of the test."""
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)


def run(cells: list[str], after: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Run cells one after the other, as a notebook does."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), names)
        if after:
            after(names)
        plt.close("all")
    return names


@pytest.mark.slow
def test_the_notebook_is_nearer_to_the_truth_after_each_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(NOTEBOOK.parent)
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    names = run(["".join(c["source"]) for c in cells if c["cell_type"] == "code"])
    steps = ("unregistered", "global affine", "local affines", "deformation")
    medians, most = zip(*(names["errors"][step] for step in steps), strict=True)
    assert list(medians) == sorted(medians, reverse=True)
    assert list(most) == sorted(most, reverse=True)
    assert medians[0] > 25
    assert medians[1] < 2
    assert medians[2] < 1
    assert medians[3] < 0.3


def cells_of_the_text() -> list[str]:
    """The code of the text, and not what is written between it."""
    cells = []
    for part in re.split(r"^In \[None\]:$", TEXT.read_text(), flags=re.MULTILINE)[1:]:
        lines = part.split("\n")
        for stop in range(len(lines), 0, -1):
            try:
                compile("\n".join(lines[:stop]), "cell", "exec")
            except SyntaxError:
                continue
            cells.append("\n".join(lines[:stop]))
            break
    return cells


@pytest.mark.slow
@pytest.mark.skipif(not (TEXT.exists() and REAL.exists()), reason=f"{TEXT} or {REAL} is not here")
def test_the_text_of_2021_runs_as_written_and_correlation_rises_at_every_step() -> None:
    cells = cells_of_the_text()
    assert len(cells) == 20
    for old, new in {**SUBSTITUTES, **ONE_LEVEL}.items():
        cells = [re.sub(old, new, cell, flags=re.MULTILINE) for cell in cells]
    seen: list[Any] = []
    found: list[float] = []

    def look(names: dict[str, Any]) -> None:
        # The text executes the same plan twice: for workstations, and for clusters.
        plan = names.get("local_affines")
        if "plan" not in names and hasattr(plan, "dask"):
            names["plan"] = plan
        elif isinstance(plan, np.ndarray) and "twice" not in names:
            names["twice"], names["local_affines"] = plan, names["plan"]
        for name in ("mov_lowres_aligned", "mov_highres_aligned"):
            image = names.get(name)
            if image is None or hasattr(image, "dask") or any(image is other for other in seen):
                continue
            seen.append(image)
            fixed = names["fix_lowres_data"]
            values = np.asarray(image)
            found.append(local_correlation_in_tissue(fixed, values, tissue_mask(fixed)))

    names = run(cells, look)
    np.testing.assert_array_equal(names["local_affines"], names["twice"])
    one, local, again, final = found
    assert one > 0.55
    assert local > one + 0.005
    assert again == local  # through the stored images and transpose flags
    assert final > local + 0.05
