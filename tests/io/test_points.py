"""Tables of points: whatever order the columns have, nothing else in the file changes."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from itkstream.errors import ExistingOutputError, InputError, MissingDataError
from itkstream.io.points import PointTable, read_points, write_points


def test_columns_in_any_order_and_others_kept(tmp_path) -> None:
    text = '\ufeffname,Z, y,x,note\n"a, b",3,2,1,\nc,6.5,5,4e1,é\n'
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    table = read_points(tmp_path / "p.csv", 3)
    np.testing.assert_array_equal(table.points, [[1, 2, 3], [40, 5, 6.5]])
    np.testing.assert_array_equal(read_points(tmp_path / "p.csv", 2).points, [[1, 2], [40, 5]])
    write_points(tmp_path / "q.csv", table, table.points / 3, np.array([False, True]))
    lines = (tmp_path / "q.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "name,Z,y,x,note,outside"
    assert lines[1].startswith('"a, b",1.0,')
    assert lines[1].endswith(",,0")
    assert lines[2].endswith("é,1")
    # Doubles survive the text, and a second mapping does not add a second column.
    again = read_points(tmp_path / "q.csv", 3)
    np.testing.assert_array_equal(again.points, table.points / 3)
    write_points(tmp_path / "r.csv", again, again.points, np.array([True, True]))
    assert (tmp_path / "r.csv").read_text(encoding="utf-8").splitlines()[0] == lines[0]


def test_numpy(tmp_path) -> None:
    points = np.random.default_rng(0).normal(size=(7, 3))
    np.save(tmp_path / "p.npy", points)
    table = read_points(tmp_path / "p.npy", 3)
    write_points(tmp_path / "q.npy", table, 2 * table.points, np.zeros(7, bool))
    np.testing.assert_array_equal(np.load(tmp_path / "q.npy"), 2 * points)
    write_points(tmp_path / "q.csv", table, points, np.zeros(7, bool))
    np.testing.assert_array_equal(read_points(tmp_path / "q.csv", 3).points, points)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "", "is empty"),
        ("p.csv", "x,y\n1,2\n", "needs one column z; its columns are x, y"),
        ("p.csv", "x,y,z,X\n1,2,3,4\n", "needs one column x"),
        ("p.csv", "x,y,z\n1,2\n", "row 1 has 2 cells"),
        ("p.csv", "x,y,z\n1,2,3\n1,two,3\n", "row 2 holds no number"),
        ("p.csv", "x,y,z\n1,2,3\n1,nan,3\n", "1 points are not finite, the first in row 2"),
        ("p.txt", "x,y,z\n", "read from .csv, .parquet or .npy"),
        ("p.npy", "x,y,z\n", "no numpy array"),
    ],
)
def test_bad_tables(tmp_path, name, text, message) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_points(tmp_path / name, 3)


def test_refuses(tmp_path) -> None:
    with pytest.raises(MissingDataError):
        read_points(tmp_path / "none.csv", 3)
    np.save(tmp_path / "p.npy", np.zeros((3, 2)))
    with pytest.raises(InputError, match=r"an array \(m, 3\)"):
        read_points(tmp_path / "p.npy", 3)
    np.save(tmp_path / "s.npy", np.array([["a", "b", "c"]]))
    with pytest.raises(InputError, match="real numbers"):
        read_points(tmp_path / "s.npy", 3)
    table = PointTable(np.zeros((1, 3)))
    with pytest.raises(InputError, match=r"written as \.csv, \.parquet or \.npy"):
        write_points(tmp_path / "q.txt", table, table.points, np.zeros(1, bool))
    with pytest.raises(ExistingOutputError):
        write_points(tmp_path / "p.npy", table, table.points, np.zeros(1, bool))


def test_parquet_keeps_its_types(tmp_path) -> None:
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    given = {"id": [7, 2**60], "Z": [3.0, 1.0], "y": [1, 2], "x": [0.5, None], "name": ["a", None]}
    path = tmp_path / "p.parquet"
    arrow.parquet.write_table(arrow.table({**given, "x": [0.5, 0.25]}), path)
    table = read_points(path, 3)
    np.testing.assert_array_equal(table.points, [[0.5, 1, 3], [0.25, 2, 1]])
    moved, outside = table.points + 0.1, np.array([False, True])
    write_points(tmp_path / "q.parquet", table, moved, outside)
    again = arrow.parquet.read_table(tmp_path / "q.parquet").to_pydict()
    assert (again["id"], again["name"]) == (given["id"], given["name"])
    assert again["outside"] == [False, True]
    np.testing.assert_array_equal([again["x"], again["y"], again["Z"]], moved.T)
    write_points(tmp_path / "q.csv", table, moved, outside)
    assert read_points(tmp_path / "q.csv", 3).rows[1][0] == str(2**60)
    # And from text, mapped once more.
    twice = read_points(tmp_path / "q.csv", 3)
    write_points(tmp_path / "r.parquet", twice, moved, ~outside)
    third = arrow.parquet.read_table(tmp_path / "r.parquet").to_pydict()
    assert third["outside"] == [True, False]
    assert third["name"] == ["a", ""]
    arrow.parquet.write_table(arrow.table(given), path)
    with pytest.raises(InputError, match="1 points are not finite"):
        read_points(path, 3)
    arrow.parquet.write_table(arrow.table({**given, "x": ["a", "b"]}), path)
    with pytest.raises(InputError, match="column x holds string"):
        read_points(path, 3)
    path.write_text("no table")
    with pytest.raises(InputError, match="is no Parquet file"):
        read_points(path, 3)


def test_parquet_without_its_library(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"pip install 'itkstream\[parquet\]'"):
        read_points(tmp_path / "p.parquet", 3)
