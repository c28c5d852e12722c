"""Tables of spots: whichever program wrote them, coordinates and units are known by the header."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from itkstream.errors import ExistingOutputError, InputError, MissingDataError
from itkstream.io.points import reading
from itkstream.io.points.columns import read_unit
from itkstream.io.points.counts import CellTable, write_counts
from itkstream.io.points.reading import open_spots
from itkstream.io.points.writing import check_spots_output, writing_spots

TRACKMATE = (
    "LABEL,ID,TRACK_ID,QUALITY,POSITION_X,POSITION_Y,POSITION_Z,FRAME\n"
    "Label,Spot ID,Track ID,Quality,X,Y,Z,Frame\n"
    "Label,Spot ID,Track ID,Quality,X,Y,Z,Frame\n"
    ",,,(quality),({0}),({0}),({0}),\n"
    "ID1,1,,3.5,1.5,2,3,0\n"
)


@pytest.mark.parametrize(
    ("text", "unit", "program", "others"),
    [
        ("x,y,z,t,c,intensity\n1.5,2,3,1,1,99\n", "voxel", "RS-FISH", "t c intensity"),
        ("3;2;1.5\n", "voxel", "Big-FISH", ""),
        ("3;2;1.5;7\n", "voxel", "Big-FISH", "column3"),
        ("index,axis-0,axis-1,axis-2\n0,3,2,1.5\n", "voxel", "napari", "index"),
        (TRACKMATE.format("micron"), "micrometer", "TrackMate", "LABEL ID TRACK_ID QUALITY FRAME"),
        (TRACKMATE.format("pixel"), "voxel", "TrackMate", "LABEL ID TRACK_ID QUALITY FRAME"),
        ("x,y,z\n1.5,2,3\n", "", "", ""),
        ("gene,Z_um,y_um,x_um\nA,3,2,1.5\n", "micrometer", "", "gene"),
        ("x (µm),y (µm),z (µm)\n1.5,2,3\n", "micrometer", "", ""),
        ("X [nm]\tY [nm]\tZ [nm]\n1.5\t2\t3\n", "nanometer", "", ""),
        ("pos_z;pos_y;pos_x;cell\n3;2;1.5;8\n", "", "", "cell"),
        ("label,centroid-x,centroid-y,centroid-z\n4,1.5,2,3\n", "", "", "label"),
        # Those that say their unit are meant; the others are kept.
        ("x,y,z,x_um,y_um,z_um\n9,9,9,1.5,2,3\n", "micrometer", "", "x y z"),
        ("x_px,y_px,z_px,x_nm,y_nm,z_nm\n9,9,9,1.5,2,3\n", "nanometer", "", "x_px y_px z_px"),
    ],
)
def test_headers_are_known(tmp_path, text, unit, program, others) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text, encoding="utf-8")
    with open_spots(path, 3) as file:
        assert (file.columns.unit, file.columns.program) == (unit, program)
        (piece,) = file.pieces()
    np.testing.assert_array_equal(piece.points, [[1.5, 2, 3]])
    assert list(piece.others) == list(file.others) == others.split()


def test_two_axes(tmp_path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("axis-0,axis-1\n2,1\n")
    with open_spots(path, 2) as file:
        np.testing.assert_array_equal(next(file.pieces()).points, [[1, 2]])
    path.write_text("x_um,y_um,z_um\n1,2,3\n")
    with open_spots(path, 2) as file:
        assert list(file.others) == ["z_um"]


def test_pieces_hold_all_rows_in_order(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(reading, "PIECE_ROWS", 3)
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    points = np.random.default_rng(0).normal(size=(8, 3))
    names = [f"g, {k}" for k in range(8)]
    with (tmp_path / "p.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "y", "gene", "z"])
        writer.writerows([x, y, n, z] for (x, y, z), n in zip(points.tolist(), names, strict=True))
    table = {"gene": names, **dict(zip("xyz", points.T, strict=True))}
    arrow.parquet.write_table(arrow.table(table), tmp_path / "p.parquet")
    np.save(tmp_path / "p.npy", points)
    for ending in ("csv", "parquet", "npy"):
        with open_spots(tmp_path / f"p.{ending}", 3) as file:
            pieces = list(file.pieces())
        assert [len(piece.points) for piece in pieces] == [3, 3, 2]
        np.testing.assert_array_equal(np.concatenate([p.points for p in pieces]), points)
        if ending != "npy":
            assert [n for piece in pieces for n in piece.others["gene"]] == names


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "", "is empty"),
        ("p.csv", "a,b\n1,2\n", "one column each for x, y, z, such as x_um"),
        ("p.csv", "x,y,z,pos_x,pos_y,pos_z\n1,2,3,4,5,6\n", "several columns that may be"),
        ("p.csv", "x_um,y_um,z_nm\n1,2,3\n", "one column each"),
        ("p.csv", "1,2,3\n", "has no header: only Big-FISH"),
        ("p.csv", "axis-0,axis-1,axis-2,axis-3\n0,1,2,3\n", "leave out axes of channels"),
        ("p.csv", "x,y,z,a,a\n1,2,3,4,5\n", "two columns of one name: a"),
        ("p.csv", "x,y,z\n1,2,3\n1,2\n", "row 2 has 2 cells"),
        # Only TrackMate has more headers.
        ("p.csv", "x,y,z\n,,\n,,\n,,\n1,2,3\n", "row 1 has no number in column x"),
        ("p.csv", "x,y,z\n1,2,3\n1,two,3\n", "row 2 has no number in column y: 'two'"),
        ("p.csv", "x,y,z\n1,2,3\n1,2,nan\n", "row 2 has no finite coordinates"),
        ("p.xlsx", "x,y,z\n", "spots are read from .csv, .npy"),
        ("p.npy", "x", "no numpy array"),
        ("p.parquet", "x", "no Parquet file"),
    ],
)
def test_bad_tables(tmp_path, name, text, message) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message), open_spots(tmp_path / name, 3) as file:
        list(file.pieces())


def test_rows_are_counted_across_pieces(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(reading, "PIECE_ROWS", 2)
    (tmp_path / "p.csv").write_text("x,y,z\n1,2,3\n1,2,3\n1,2,3\n1,2,bad\n")
    with (
        open_spots(tmp_path / "p.csv", 3) as file,
        pytest.raises(InputError, match="row 4 has no number in column z"),
    ):
        list(file.pieces())


def test_units() -> None:
    assert [read_unit(text) for text in ("um", "µm", " NM", "px")] == [
        "micrometer",
        "micrometer",
        "nanometer",
        "voxel",
    ]
    with pytest.raises(InputError, match="unknown unit of coordinates 'inch'; known: nm"):
        read_unit("inch")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_pieces_are_written_as_one_table(tmp_path, ending) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow.parquet")
    path = tmp_path / f"q.{ending}"
    types = {"x_um": float, "y_um": float, "gene": str, "note": str, "outside": bool}
    first = {"x_um": np.array([0.1, 1 / 3]), "y_um": np.zeros(2), "gene": ["A", "B, C"]}
    second = {"x_um": np.ones(1), "y_um": np.ones(1), "gene": [None], "note": [7]}
    with writing_spots(path, types, False) as write:
        write({**first, "outside": np.array([True, False])})
        write({**second, "outside": np.array([False])})
        assert not path.exists()
    with open_spots(path, 2) as file:
        (piece,) = file.pieces()
    np.testing.assert_array_equal(piece.points, [[0.1, 0], [1 / 3, 0], [1, 1]])
    nothing = "" if ending == "csv" else None
    flags = ["1", "0", "0"] if ending == "csv" else [True, False, False]
    assert list(piece.others["gene"]) == ["A", "B, C", nothing]
    assert list(piece.others["note"]) == [nothing, nothing, "7"]
    assert list(piece.others["outside"]) == flags
    with pytest.raises(ExistingOutputError):
        check_spots_output(path, False)
    with pytest.raises(InputError, match=r"written as \.csv or \.parquet"):
        check_spots_output(tmp_path / "q.npy", False)


def test_a_table_that_fails_leaves_nothing(tmp_path) -> None:
    path = tmp_path / "q.csv"

    def fail() -> None:
        with writing_spots(path, {"x": float}, False) as write:
            write({"x": np.ones(1)})
            raise InputError("half way")

    with pytest.raises(InputError, match="half way"):
        fail()
    assert not list(tmp_path.iterdir())
    with pytest.raises(MissingDataError, match="no table of spots"), open_spots(path, 3):
        pass


def test_counts_as_anndata(tmp_path) -> None:
    anndata = pytest.importorskip("anndata")
    from scipy.sparse import csr_array

    counts = csr_array(np.array([[0, 2], [0, 0], [5, 1]]))
    table = CellTable(
        np.array([3, 9, 2**40]), ("A", "B"), counts, np.eye(3), np.array([10, 20, 30])
    )
    write_counts(tmp_path / "c.h5ad", table, False)
    found = anndata.read_h5ad(tmp_path / "c.h5ad")
    assert (list(found.obs_names), list(found.var_names)) == (["3", "9", str(2**40)], ["A", "B"])
    np.testing.assert_array_equal(found.X.toarray(), counts.toarray())
    np.testing.assert_array_equal(found.obsm["spatial"], np.eye(3))
    assert found.obs["voxels"].tolist() == [10, 20, 30]


def test_counts_without_anndata(tmp_path, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "anndata", None)
    table = CellTable(np.arange(1), (), None, np.zeros((1, 3)), np.ones(1, int))
    with pytest.raises(InputError, match=r"pip install 'itkstream\[anndata\]'"):
        write_counts(tmp_path / "c.h5ad", table, False)
    with pytest.raises(InputError, match=r"written as \.csv or \.h5ad"):
        write_counts(tmp_path / "c.tsv", table, False)
