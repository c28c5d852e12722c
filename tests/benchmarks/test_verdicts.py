"""The benchmark of verdicts: its pairs are what they are said to be, and its table counts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from verdict_pairs import KINDS, Case, list_cases, make_pair
from verdicts import bars_of, judge_case, table_of

from itkstream.geometry import AffineTransform

REAL = ("real pair", "real half")


def test_every_case_is_one_of_its_own() -> None:
    first, second = ([c for c in list_cases([seed]) if c.kind not in REAL] for seed in (0, 1))
    assert {case.kind for case in first} == set(KINDS) - set(REAL)
    assert len({case.name for case in [*first, *second]}) == len(first) + len(second)
    # The next seed takes the textures that this one leaves out.
    textures = Counter((case.kind, case.texture) for case in [*first, *second])
    assert set(textures.values()) == {1}


@pytest.mark.parametrize("kind", ["turned", "slipped"])
def test_places_show_the_same_tissue(kind: str) -> None:
    pair = make_pair(Case(kind, "nuclei", 3))
    assert pair.places is not None
    assert np.linalg.norm(pair.places - pair.points, axis=1).max() > 7
    values = []
    for image, points in ((pair.fixed, pair.points), (pair.moving, pair.places)):
        index = image.grid.to_index(points).T
        values.append(map_coordinates(image.read(), index, order=1, cval=np.nan))
    seen = np.isfinite(values).all(axis=0)
    assert np.corrcoef(*(v[seen] for v in values))[0, 1] > 0.7


def test_no_answer_is_right_for_other_tissue() -> None:
    pair = make_pair(Case("noise", "mottled", 1))
    assert np.isinf(pair.error_vox(AffineTransform(np.eye(4)))).all()


def test_a_cached_case_is_judged_anew(tmp_path: Path) -> None:
    case = Case("good", "nuclei", 0)
    error: dict[str, Any] = {
        "median_um": 0.4,
        "p95_um": 1.0,
        "share_over_5_vox": 0.4,
        "share_unknown": 0.0,
        "regions": [],
    }
    evidence = {
        "grid": [[40, 60, 60], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]],
        "matrix": np.eye(4).tolist(),
        "overlap": {"fixed": 1.0, "moving": 1.0},
        "steps": [],
        "certificate": {"failures": []},
        "error": error,
    }
    file = tmp_path / f"{case.name}.json"
    for found, outcome in (
        ({"truth": "good", "evidence": evidence}, "look"),
        ({"truth": "refused", "refused": "no affine"}, "failed"),
    ):
        file.write_text(json.dumps(found))
        assert judge_case(case, tmp_path)["outcome"] == outcome


def test_the_table_counts_what_the_bars_are_about() -> None:
    given = [("good", "good"), ("good", "look"), ("bad", "good"), ("bad", "failed")]
    rows = [
        {"kind": "torn", "texture": "nuclei", "seed": n, "reasons": ["so"]}
        | {"truth": truth, "outcome": outcome}
        for n, (truth, outcome) in enumerate(given)
    ]
    expected = {"good": 2, "looked": 1, "failed": 0, "bad": 2, "missed": 1}
    assert bars_of(rows) == expected
    text = table_of(rows)
    assert "| torn | bad | 2 | 1 | 0 | 1 |" in text
    assert "Of 2 bad results 1 are called good; of 2 good ones 0 failed and 1 look." in text
    assert text.count("\n- ") == 2
