"""Spots of an experiment come back to where they are in the reference, whatever their table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from spot_rounds import GRID, UNKNOWN_X, make_rounds, ways

import itkstream
from itkstream.apply.points import InverseMap, apply_to_points, nearest_values
from itkstream.cli.app import commands
from itkstream.errors import ExistingOutputError, InputError, MissingDataError, RegistrationError
from itkstream.experiment.assignment import assign_tables
from itkstream.experiment.spots import map_spots, move_spots
from itkstream.geometry import Image
from itkstream.io.points import reading


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_rounds(tmp_path)


def places(count: int = 60, seed: int = 0) -> np.ndarray:
    """Points of the reference, z, y, x, away from its border, so that all rounds show them."""
    low, high = GRID.positions()[4, 5, 6], GRID.positions()[-5, -6, -7]
    return np.random.default_rng(seed).uniform(low, high, (count, 3))


def write_table(path: Path, points: np.ndarray, header: str = "x_um,y_um,z_um", **more) -> Path:
    """Write points given as z, y, x under a header for x, y, z and further columns."""
    cells = zip(points[:, ::-1].tolist(), *more.values(), strict=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*header.split(","), *more])
        writer.writerows([*p, *rest] for p, *rest in cells)
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def coordinates(rows: list[dict[str, str]]) -> np.ndarray:
    return np.array([[float(row[f"{axis}_um"]) for axis in "zyx"] for row in rows])


def of_rounds(tmp_path: Path, true: np.ndarray) -> list[Path]:
    """Tables of the same spots in all rounds."""
    names = [f"g, {k}" for k in range(len(true))]
    tables = [write_table(tmp_path / "r1_spots.csv", true, gene=names)]
    for name, way in ways().items():
        tables.append(write_table(tmp_path / f"{name}_spots.csv", way.apply(true), gene=names))
    return tables


# The inverse is solved to a hundredth of the smallest voxel, 0.8 µm; fields are stored in float32.
TOLERANCE_UM = 0.008


def test_spots_of_all_rounds_meet_in_the_reference(folder, tmp_path) -> None:
    true = places()
    moved = move_spots(folder, of_rounds(tmp_path, true))
    for found in moved.rounds:
        rows = read_rows(folder / "spots" / f"{found.name}.csv")
        np.testing.assert_allclose(coordinates(rows), true, atol=TOLERANCE_UM)
        assert [row["gene"] for row in rows] == [f"g, {k}" for k in range(len(true))]
        assert {row["round"] for row in rows} == {found.name}
        assert {row["table"] for row in rows} == {f"{found.name}_spots"}
        assert (found.spots, found.within, found.outside) == (60, 60, 0)
    assert list(rows[0]) == [
        *("x_um", "y_um", "z_um", "gene", "round", "table", "outside", "error_um"),
    ]
    joined = read_rows(folder / "spots" / "joined.csv")
    assert joined == [
        row for name in ("r1", "r2", "r3") for row in read_rows(folder / "spots" / f"{name}.csv")
    ]


def test_errors_are_those_of_the_map_at_the_place(folder, tmp_path) -> None:
    true = places()
    move_spots(folder, of_rounds(tmp_path, true))
    image = itkstream.open_image(folder / "rounds" / "r2" / "error.ome.zarr")
    radii, grid = image.read(), image.grid
    for name in ("r2", "r3"):
        rows = read_rows(folder / "spots" / f"{name}.csv")
        at = coordinates(rows)
        nearest = np.rint(grid.to_index(at)).astype(int)
        expected = radii[tuple(np.clip(nearest, 0, np.subtract(radii.shape, 1)).T)]
        found = np.array([float(row["error_um"]) for row in rows])
        np.testing.assert_array_equal(found, expected.astype(float))
        # Nodes stand for 3.2 µm along x.
        assert np.isnan(found[at[:, 2] > UNKNOWN_X + 1.6]).all()
        assert np.isfinite(found[at[:, 2] < UNKNOWN_X - 1.6]).all()
    assert {row["error_um"] for row in read_rows(folder / "spots" / "r1.csv")} == {"0.0"}


def test_spots_beyond_the_reference_are_outside(folder, tmp_path) -> None:
    far = places(5) + np.array([0, 60, 0])
    table = write_table(tmp_path / "r3.csv", ways()["r3"].apply(np.vstack([places(5), far])))
    (found,) = move_spots(folder, [table]).rounds
    rows = read_rows(folder / "spots" / "r3.csv")
    assert [row["outside"] for row in rows] == ["0"] * 5 + ["1"] * 5
    assert [row["error_um"] for row in rows[5:]] == ["nan"] * 5
    assert found.outside == 5


def test_units_of_the_header_and_of_the_caller(folder, tmp_path) -> None:
    true = places(9)
    way = ways()["r2"]
    voxels = GRID.to_index(way.apply(true))
    tables = {
        "nm": write_table(tmp_path / "a.csv", 1000 * way.apply(true), "x_nm,y_nm,z_nm"),
        "rs": write_table(
            tmp_path / "b.csv", voxels, "x,y,z", t=[1] * 9, c=[1] * 9, intensity=[5] * 9
        ),
        "plain": write_table(tmp_path / "c.csv", voxels, "x,y,z"),
        "um": write_table(tmp_path / "d.csv", way.apply(true), "x,y,z"),
    }
    asked = {"plain": "voxel"}
    for kind, table in tables.items():
        move_spots(folder, {"r2": table}, unit=asked.get(kind), overwrite=True)
        rows = read_rows(folder / "spots" / "r2.csv")
        np.testing.assert_allclose(coordinates(rows), true, atol=TOLERANCE_UM, err_msg=kind)
    with pytest.raises(InputError, match=r"a\.csv states nanometers in its header, and voxels"):
        move_spots(folder, {"r2": tables["nm"]}, unit="voxel", overwrite=True)
    # Index coordinates taken for µm lie somewhere else, and that is said.
    wrong = write_table(tmp_path / "e.csv", 50 + voxels, "x,y,z")
    (found,) = move_spots(folder, {"r2": wrong}, overwrite=True).rounds
    assert "only 0% lie in its image: is that the unit?" in found.describe()


def test_pieces_change_nothing(folder, tmp_path, monkeypatch) -> None:
    tables = of_rounds(tmp_path, places())
    move_spots(folder, tables)
    whole = (folder / "spots" / "joined.csv").read_bytes()
    monkeypatch.setattr(reading, "PIECE_ROWS", 7)
    move_spots(folder, tables, overwrite=True)
    assert (folder / "spots" / "joined.csv").read_bytes() == whole


def test_several_tables_of_a_round_are_one_with_all_columns(folder, tmp_path) -> None:
    true = places(6)
    moved = ways()["r2"].apply(true)
    a = write_table(tmp_path / "r2_c1.csv", moved[:2], snr=[1, 2])
    b = write_table(tmp_path / "r2_c2.csv", moved[2:], "x,y,z", sigma=[3, 4, 5, 6])
    out = tmp_path / "all.csv"
    (found,) = move_spots(folder, [a, b], out).rounds
    rows = read_rows(out)
    assert rows == read_rows(folder / "spots" / "r2.csv")
    np.testing.assert_allclose(coordinates(rows), true, atol=TOLERANCE_UM)
    assert [row["table"] for row in rows] == ["r2_c1"] * 2 + ["r2_c2"] * 4
    assert [row["snr"] for row in rows] == ["1", "2", *[""] * 4]
    assert [row["sigma"] for row in rows] == ["", "", "3", "4", "5", "6"]
    assert found.spots == 6
    assert not (folder / "spots" / "joined.csv").exists()


def test_joined_as_parquet_keeps_types(folder, tmp_path) -> None:
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    true = places(4)
    points = dict(zip(("z", "y", "x"), ways()["r3"].apply(true).T, strict=True))
    path = tmp_path / "r3.parquet"
    arrow.parquet.write_table(arrow.table({"id": [1, 2, 3, 4], **points}), path)
    move_spots(folder, [path], tmp_path / "all.parquet")
    found = arrow.parquet.read_table(tmp_path / "all.parquet")
    assert [str(kind) for kind in found.schema.types] == [
        *("double", "double", "double", "int64", "string", "string", "bool", "double"),
    ]
    np.testing.assert_allclose(found["x_um"].to_numpy(), true[:, 2], atol=TOLERANCE_UM)


def test_a_failed_round_is_left_out_and_said(tmp_path) -> None:
    def fail(facts) -> None:
        facts["rounds"][1] |= {"transform": None, "failed": "no affine found"}
        facts["rounds"][2]["verdict"] = {"outcome": "failed", "reasons": ["it is elsewhere"]}

    folder = make_rounds(tmp_path, fail)
    tables = of_rounds(tmp_path, places(5))
    moved = move_spots(folder, tables)
    assert [bool(found.left_out) for found in moved.rounds] == [False, True, True]
    assert "no affine found" in moved.rounds[1].describe()
    assert "it is elsewhere" in moved.rounds[2].describe()
    assert {row["round"] for row in read_rows(folder / "spots" / "joined.csv")} == {"r1"}
    with pytest.raises(RegistrationError, match="no round with spots has a result"):
        move_spots(folder, tables[1:], overwrite=True)


def test_nothing_is_replaced_unasked_nor_left_behind(folder, tmp_path) -> None:
    tables = of_rounds(tmp_path, places(5))
    move_spots(folder, tables)
    with pytest.raises(ExistingOutputError):
        move_spots(folder, tables)
    before = (folder / "spots" / "r2.csv").read_bytes()
    (tmp_path / "r2_spots.csv").write_text("x_um,y_um,z_um\n1,2,bad\n")
    with pytest.raises(InputError, match=r"r2_spots\.csv: row 1"):
        move_spots(folder, tables, overwrite=True)
    assert (folder / "spots" / "r2.csv").read_bytes() == before
    assert len(list((folder / "spots").iterdir())) == 4
    with pytest.raises(InputError, match="input is never replaced"):
        move_spots(folder, {"r2": folder / "spots" / "joined.csv"}, overwrite=True)
    with pytest.raises(InputError, match=r"r2\.csv is the table of a round"):
        move_spots(folder, tables, folder / "spots" / "r2.csv", overwrite=True)
    with pytest.raises(MissingDataError, match="no table of spots"):
        move_spots(folder, {"r2": tmp_path / "none.csv"}, overwrite=True)


ROUNDS = ["round1", "round2", "round10", "round1-again", "R3"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("spots/round1.csv", "round1"),
        ("spots/round10.csv", "round10"),
        ("a_Round2-GeneA.parquet", "round2"),
        ("round1-again_c1.csv", "round1-again"),
        ("x/round2/spots.csv", "round2"),
        ("round2/round1_c0.csv", "round1"),
        ("r3c1.csv", "R3"),
        ("R3=any.csv", "R3"),
    ],
)
def test_tables_tell_their_round(path, name) -> None:
    assert assign_tables([path], ROUNDS, None) == {name: [path.removeprefix("R3=")]}


def test_unclear_tables_are_all_listed() -> None:
    given = ["round1.csv", "spots.csv", "round2_to_round10.csv", "around1.csv", "round11.csv"]
    with pytest.raises(InputError) as raised:
        assign_tables(given, ROUNDS, None)
    text = str(raised.value)
    assert text.startswith("4 of 5 tables do not tell which round they are of")
    for line in ("spots.csv: no round", "round2_to_round10.csv: round2 or round10", *given[3:]):
        assert f"  {line}" in text
    assert text.endswith(f"the rounds are {', '.join(ROUNDS)}")
    with pytest.raises(InputError, match="unknown round 'round3'; did you mean"):
        assign_tables({"round3": "a.csv"}, ROUNDS, None)
    with pytest.raises(InputError, match="no table of spots to move"):
        assign_tables({"round1": []}, ROUNDS, None)


def test_inverse_made_once_is_that_of_each_call() -> None:
    way = ways()["r3"]
    points = way.apply(places(50))
    expected = apply_to_points(way, points, inverse=True)
    ready = InverseMap.of(way)
    for some in (slice(0, 20), slice(20, 50)):
        found = ready(points[some])
        np.testing.assert_array_equal(found.points, expected.points[some])
        np.testing.assert_array_equal(found.outside, expected.outside[some])


def test_nearest_values_are_those_of_the_voxel() -> None:
    rng = np.random.default_rng(1)
    image = Image(rng.integers(1, 99, GRID.shape), GRID)
    points = rng.uniform(*GRID.outer_corners()[[0, -1]], (400, 3))
    values, missed = nearest_values(image, points)
    index = np.floor(GRID.to_index(points) + 0.5).astype(int)
    np.testing.assert_array_equal(values, image.data[tuple(index.T)])
    assert not missed.any()
    values, missed = nearest_values(image, points + np.array([0, 0, 1000]))
    assert missed.all()
    assert not values.any()


def registration(folder: Path) -> Path:
    """Round r3 as a registration of its own, with what a report says of its images."""
    place = folder / "rounds" / "r3"
    sides = {"fixed": "r1", "moving": "r3"}
    facts = {side: {"name": str(folder.parent / f"{n}.ome.zarr")} for side, n in sides.items()}
    (place / "registration.json").write_text(json.dumps(facts))
    return place


def test_a_registration_is_an_experiment_of_two(folder, tmp_path) -> None:
    place, true = registration(folder), places(7)
    table = write_table(tmp_path / "spots.csv", ways()["r3"].apply(true))
    (found,) = move_spots(place, [table]).rounds
    assert found.name == "moving"
    rows = read_rows(place / "spots" / "moving.csv")
    np.testing.assert_allclose(coordinates(rows), true, atol=TOLERANCE_UM)


def test_known_headers_through_one_transform(folder, tmp_path) -> None:
    place, true = registration(folder), places(7)
    moved = ways()["r3"].apply(true)
    back, there = tmp_path / "back.csv", tmp_path / "there.csv"
    table = write_table(tmp_path / "m.csv", 1000 * moved, "x_nm,y_nm,z_nm", gene=list("abcdefg"))
    map_spots(place, table, back, inverse=True)
    rows = read_rows(back)
    assert list(rows[0]) == ["x_um", "y_um", "z_um", "gene", "outside", "error_um"]
    np.testing.assert_allclose(coordinates(rows), true, atol=TOLERANCE_UM)
    # Forward, the error is that of the place a point comes from.
    index = write_table(tmp_path / "f.csv", GRID.to_index(true), "x,y,z")
    map_spots(place, index, there, unit="voxel")
    again = read_rows(there)
    np.testing.assert_allclose(coordinates(again), moved, atol=1e-5)
    assert [row["error_um"] for row in again] == [row["error_um"] for row in rows]
    with pytest.raises(InputError, match="index coordinates need the image"):
        map_spots(place / "transform.ome.zarr", index, there, unit="voxel", overwrite=True)


def run(*words: object):
    return CliRunner().invoke(commands, list(map(str, words)), catch_exceptions=True)


class TestCommand:
    def test_experiment(self, folder, tmp_path) -> None:
        tables = of_rounds(tmp_path, places(5))
        done = run("points", folder, *tables)
        assert done.exit_code == 0, done.output
        assert "r2: 5 spots, read in micrometers, 0 outside" in done.output
        assert f"moved: {folder / 'spots' / 'joined.csv'}" in done.output
        assert run("points", folder, tables[0], "--inverse").exit_code == 2
        told = json.loads(run("points", folder, *tables[1:], "--overwrite", "--json").stdout)
        assert [facts["name"] for facts in told["rounds"]] == ["r2", "r3"]
        assert told["rounds"][0]["spots"] == 5

    def test_plain_tables_keep_their_columns(self, folder, tmp_path) -> None:
        true = places(5)
        table = write_table(tmp_path / "p.csv", true, "x,y,z", note=list("abcde"))
        place = registration(folder)
        done = run("points", place, table, "--out", tmp_path / "q.csv")
        assert done.exit_code == 0, done.output
        rows = read_rows(tmp_path / "q.csv")
        assert list(rows[0]) == ["x", "y", "z", "note", "outside"]
        found = np.array([[float(row[axis]) for axis in "zyx"] for row in rows])
        np.testing.assert_allclose(found, ways()["r3"].apply(true), atol=1e-5)

    def test_voxels_of_one_registration(self, folder, tmp_path) -> None:
        true = places(5)
        table = write_table(tmp_path / "p.csv", GRID.to_index(ways()["r3"].apply(true)), "x,y,z")
        words = ("points", registration(folder), table, "--out", tmp_path / "q.csv", "--inverse")
        done = run(*words, "--voxels")
        assert done.exit_code == 0, done.output
        rows = read_rows(tmp_path / "q.csv")
        np.testing.assert_allclose(coordinates(rows), true, atol=TOLERANCE_UM)
        assert "--voxels and --unit nm exclude" in run(*words, "--voxels", "--unit", "nm").output

    def test_what_cannot_be(self, folder, tmp_path) -> None:
        table = write_table(tmp_path / "p.csv", places(2), "x,y,z")
        place = registration(folder)
        assert "say where to write: --out OUT" in run("points", place, table).output
        words = ("points", place, table, table, "--out", tmp_path / "q.csv")
        assert "one transform takes one table; got 2" in run(*words).output
