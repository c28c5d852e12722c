"""Files of landmarks: literal ones of each program, round trips, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itkstream.errors import ExistingOutputError, InputError, MissingDataError
from itkstream.geometry import Grid, Landmarks
from itkstream.io.landmarks.check import check_landmarks
from itkstream.io.landmarks.files import read_landmarks, write_landmarks

FIXED = np.array([[1.0, 2.0, 3.0], [4.0, 5.5, 6.0], [10.0, 0.25, 7.0], [2.0, 9.0, 1.0]])
MOVING = FIXED + np.array([100.0, 0.5, -1.0])
MARKS = Landmarks(FIXED, MOVING, ("a", "b", "c", "d"), sigma_um=2.0, axes=("x", "y", "z"))
GRID = Grid((20, 30, 40), (2.0, 0.5, 0.5), (1.0, 2.0, 3.0), axes=("z", "y", "x"))
MILLIMETERS = Grid((20, 30, 40), (0.1, 0.1, 0.1), axes=("z", "y", "x"), unit="millimeter")


def write(folder: Path, text: str, name: str = "marks.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def rows(points: np.ndarray[Any, Any], *others: np.ndarray[Any, Any]) -> str:
    return "\n".join(",".join(map(str, row)) for row in np.hstack([points, *others]).tolist())


@pytest.mark.parametrize(
    ("header", "scale"),
    [
        ("fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z", 1.0),
        ("fx,fy,fz,mx,my,mz", 1.0),
        ("xf,yf,zf,xm,ym,zm", 1.0),
        ("Fix X,Fix Y,Fix Z,Mov X,Mov Y,Mov Z", 1.0),
        ("fixedX,fixedY,fixedZ,movingX,movingY,movingZ", 1.0),
        ("target.x,target.y,target.z,source.x,source.y,source.z", 1.0),
        ("x_fixed,y_fixed,z_fixed,x_moving,y_moving,z_moving", 1.0),
        ("fixed_x_mm,fixed_y_mm,fixed_z_mm,moving_x_mm,moving_y_mm,moving_z_mm", 1e3),
        ("X fixed (nm),Y fixed (nm),Z fixed (nm),X mov (nm),Y mov (nm),Z mov (nm)", 1e-3),
        ("ref x [µm],ref y [µm],ref z [µm],src x [µm],src y [µm],src z [µm]", 1.0),
    ],
)
def test_spellings_of_columns(tmp_path: Path, header: str, scale: float) -> None:
    marks = read_landmarks(write(tmp_path, f"{header}\n{rows(FIXED, MOVING)}\n"))
    np.testing.assert_allclose(marks.fixed, FIXED * scale)
    np.testing.assert_allclose(marks.moving, MOVING * scale)
    assert marks.axes == ("x", "y", "z")
    assert marks.source == (str(tmp_path / "marks.csv"),)


def test_columns_in_any_order_with_names_deviations_and_rows_out_of_use(tmp_path: Path) -> None:
    text = (
        "active;moving_z;moving_y;moving_x;label;fixed_z;fixed_y;fixed_x;sigma_um\n"
        "true;30;20;10;left eye;3;2;1;0.5\n"
        "false;0;0;0;wrong;0;0;0;9\n"
        "1;31;21;11;right eye;4;3;2;0.7\n"
    )
    marks = read_landmarks(write(tmp_path, text))
    assert marks.names == ("left eye", "right eye")
    assert marks.fixed.tolist() == [[1, 2, 3], [2, 3, 4]]
    assert marks.moving.tolist() == [[10, 20, 30], [11, 21, 31]]
    assert marks.sigma_um.tolist() == [0.5, 0.7]


@pytest.mark.parametrize(
    ("column", "sigma"), [("sigma", 500.0), ("sigma_um", 0.5), ("std (nm)", 0.0005)]
)
def test_deviations_have_the_unit_of_their_column(
    tmp_path: Path, column: str, sigma: float
) -> None:
    text = f"fx_mm,fy_mm,fz_mm,mx_mm,my_mm,mz_mm,{column}\n1,2,3,4,5,6,0.5\n"
    assert read_landmarks(write(tmp_path, text)).sigma_um == pytest.approx([sigma])
    text = text.replace("_mm", "_px")
    if column == "sigma":
        with pytest.raises(InputError, match="stated in voxels"):
            read_landmarks(write(tmp_path, text), fixed=GRID, moving=GRID)
    else:
        marks = read_landmarks(write(tmp_path, text), fixed=GRID, moving=GRID)
        assert marks.sigma_um == pytest.approx([sigma])


def test_indices_on_request(tmp_path: Path) -> None:
    path = write(tmp_path, f"fx,fy,fz,mx,my,mz\n{rows(FIXED, FIXED)}\n")
    marks = read_landmarks(path, unit="voxel", fixed=GRID, moving=MILLIMETERS)
    np.testing.assert_allclose(marks.fixed, FIXED * (0.5, 0.5, 2.0) + (3.0, 2.0, 1.0))
    np.testing.assert_allclose(marks.moving, FIXED * 100.0)
    with pytest.raises(InputError, match="say nothing without the fixed image"):
        read_landmarks(path, unit="voxel")


BIGWARP = (
    '"Pt-0","true","101.0","2.5","2.0","1.0","2.0","3.0"\n'
    '"Pt-1","false","5.0","6.0","7.0","Infinity","Infinity","Infinity"\n'
    '"Pt-2","true","104.0","6.0","5.0","4.0","5.5","6.0"\n'
)


def test_bigwarp_has_moving_points_first(tmp_path: Path) -> None:
    marks = read_landmarks(write(tmp_path, BIGWARP))
    assert marks.names == ("Pt-0", "Pt-2")
    np.testing.assert_array_equal(marks.fixed, FIXED[:2])
    np.testing.assert_array_equal(marks.moving, MOVING[:2])
    flat = read_landmarks(write(tmp_path, '"Pt-0","true","3.0","4.0","1.0","2.0"\n'))
    assert flat.axes == ("x", "y")
    assert flat.fixed.tolist() == [[1.0, 2.0]]
    known = {
        "type": "BigWarpLandmarks",
        "numDimensions": 3,
        "movingPoints": MOVING[:2].tolist(),
        "fixedPoints": FIXED[:2].tolist(),
        "active": [True, False],
        "names": ["Pt-0", "Pt-1"],
    }
    project = json.dumps({"Sources": {}, "Transform": {"type": "TPS", "landmarks": known}})
    for text in (json.dumps(known), project):
        one = read_landmarks(write(tmp_path, text, "marks.json"))
        assert (one.names, one.moving.tolist()) == (("Pt-0",), MOVING[:1].tolist())


def markups(system: str, points: Any, labels: Any) -> str:
    listed = [
        {"id": str(k), "label": label, "position": list(point), "positionStatus": "defined"}
        for k, (label, point) in enumerate(zip(labels, points, strict=True))
    ]
    listed.append({"id": "x", "label": "lost", "position": [0, 0, 0], "positionStatus": "missing"})
    one = {"type": "Fiducial", "coordinateSystem": system, "controlPoints": listed}
    return json.dumps({"@schema": "https://", "markups": [one]})


def test_slicer_says_its_coordinate_system_and_pairs_by_label(tmp_path: Path) -> None:
    ras = FIXED * (-1, -1, 1)
    fixed = write(tmp_path, markups("RAS", ras, "abcd"), "fixed.mrk.json")
    moving = write(tmp_path, markups("LPS", MOVING[::-1], "dcba"), "moving.mrk.json")
    marks = read_landmarks(fixed, moving)
    np.testing.assert_array_equal(marks.fixed, FIXED)
    np.testing.assert_array_equal(marks.moving, MOVING)
    # Slicer's numbers are those that ITK gives the image.
    scaled = read_landmarks(fixed, moving, fixed=MILLIMETERS, moving=GRID)
    np.testing.assert_allclose(scaled.fixed, FIXED * 1e3)
    np.testing.assert_allclose(scaled.moving, MOVING)
    other = write(tmp_path, markups("LPS", MOVING, "abce"), "other.mrk.json")
    with pytest.raises(InputError, match=r"2 landmarks have a partner in one of .* only: d, e"):
        read_landmarks(fixed, other)


@pytest.mark.parametrize(("said", "sign"), [("LPS", 1), ("RAS", -1), ("0", -1), ("1", 1)])
def test_fcsv(tmp_path: Path, said: str, sign: int) -> None:
    head = (
        "# Markups fiducial file version = 4.13\n"
        f"# CoordinateSystem = {said}\n"
        "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
    )
    lines = [
        f"vtk_{k},{sign * x},{sign * y},{z},0,0,0,1,1,1,0,F-{k},,\n"
        for k, (x, y, z) in enumerate(FIXED)
    ]
    path = write(tmp_path, head + "".join(lines), "fixed.fcsv")
    marks = read_landmarks(path, path)
    np.testing.assert_array_equal(marks.fixed, FIXED)
    assert marks.names == ("F-0", "F-1", "F-2", "F-3")


def test_napari_has_indices_slowest_axis_first(tmp_path: Path) -> None:
    text = "index,axis-0,axis-1,axis-2\n0.0,1.0,2.0,3.0\n1.0,0.5,0.0,10.0\n"
    path = write(tmp_path, text)
    marks = read_landmarks(path, path, fixed=GRID, moving=GRID.reorder(("x", "y", "z")))
    wanted = [[3 + 1.5, 2 + 1.0, 1 + 2.0], [3 + 5.0, 2.0, 1 + 1.0]]
    np.testing.assert_allclose(marks.fixed, wanted)
    np.testing.assert_allclose(marks.moving, wanted)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("marks.csv",), "csv"),
        (("marks.csv",), "bigwarp"),
        (("fixed.mrk.json", "moving.mrk.json"), None),
        (("fixed.fcsv", "moving.fcsv"), None),
        (("fixed.csv", "moving.csv"), "napari"),
    ],
)
def test_what_is_written_is_read(tmp_path: Path, names: tuple[str, ...], kind: Any) -> None:
    paths = [tmp_path / name for name in names]
    grids = {"fixed": GRID, "moving": MILLIMETERS}
    # Coordinates in another order are brought to x, y, z.
    write_landmarks(paths[0], MARKS.reorder(("z", "x", "y")), *paths[1:], kind=kind, **grids)
    again = read_landmarks(*paths, **grids)
    np.testing.assert_allclose(again.fixed, FIXED, atol=1e-12)
    np.testing.assert_allclose(again.moving, MOVING, atol=1e-12)
    assert again.names == (("1", "2", "3", "4") if kind == "napari" else MARKS.names)
    assert (again.sigma_um is not None) == (kind == "csv")
    with pytest.raises(ExistingOutputError):
        write_landmarks(paths[0], MARKS, *paths[1:], kind=kind, **grids)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("fx,fy,fz,mx,my,mz\n1,2,3,4,5\n", "row 1 has 5 cells"),
        ("fx,fy,fz,mx,my,mz\n1,2,3,4,5,six\n", "row 1: could not convert"),
        ("fx,fy,fz,mx,my,mz\n1,2,3,4,5,nan\n", "1 landmarks are not finite, the first in row 1"),
        ("fx,fy,fz,mx,my\n1,2,3,4,5\n", "moving ones x, y"),
        ("fx,fy,fz,fx,mx,my,mz\n1,2,3,1,4,5,6\n", "one column each of fixed_x"),
        ("fx_mm,fy,fz,mx,my,mz\n1,2,3,4,5,6\n", "different units"),
        ("x,y,z\n1,2,3\n", "points of one image"),
        ("a,b,c\n1,2,3\n", "needs one column each of x, y, z"),
        ('"P","true","1","2","3","Infinity","2","3"\n', "P has no point in one of the images"),
        ('"P","false","1","2","3","4","2","3"\n', "none of them active"),
    ],
)
def test_what_cannot_be_understood_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_landmarks(write(tmp_path, text))


def test_other_refusals(tmp_path: Path) -> None:
    pairs = write(tmp_path, f"fx_mm,fy_mm,fz_mm,mx,my,mz\n{rows(FIXED, MOVING)}\n")
    three = write(tmp_path, f"x,y,z\n{rows(FIXED[:3])}\n", "three.csv")
    four = write(tmp_path, f"x,y,z\n{rows(MOVING)}\n", "four.csv")
    with pytest.raises(MissingDataError):
        read_landmarks(tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"holds 3 points and .* 4, and no labels"):
        read_landmarks(three, four)
    with pytest.raises(InputError, match="holds pairs: give it alone"):
        read_landmarks(pairs, four)
    with pytest.raises(InputError, match="unknown unit of landmarks 'mm'"):
        read_landmarks(pairs, unit="mm")
    for unit in ("nanometer", "voxel"):
        with pytest.raises(InputError, match="states that it is in millimeters"):
            read_landmarks(pairs, unit=unit, fixed=GRID, moving=GRID)
    with pytest.raises(InputError, match="neither a point list"):
        read_landmarks(write(tmp_path, "{}", "a.json"))
    with pytest.raises(InputError, match="is no JSON"):
        read_landmarks(write(tmp_path, "{", "b.mrk.json"))
    with pytest.raises(InputError, match="give path and moving_path"):
        write_landmarks(tmp_path / "x.fcsv", MARKS)
    with pytest.raises(InputError, match="give axes"):
        write_landmarks(tmp_path / "x.csv", Landmarks(FIXED, MOVING))


IMAGE = Grid((200, 100, 50), (1.0, 1.0, 2.0), axes=("x", "y", "z"))
INSIDE = np.random.default_rng(0).uniform((150, 20, 5), (199, 99, 95), (20, 3))


@pytest.mark.parametrize(
    ("fixed", "said"),
    [
        (INSIDE * 1e-3 - 300, "Check their unit"),
        (INSIDE * 1e3, "In nanometers they lie inside"),
        (INSIDE[:, ::-1], "reverse order"),
        (INSIDE * (-1, -1, 1), "they seem to be RAS"),
    ],
)
def test_landmarks_far_outside_are_refused_with_the_likely_reason(fixed: Any, said: str) -> None:
    check_landmarks(Landmarks(INSIDE, INSIDE), IMAGE, IMAGE)
    with pytest.raises(InputError, match=rf"fixed landmarks lie far outside(.|\n)*{said}"):
        check_landmarks(Landmarks(fixed, INSIDE), IMAGE, IMAGE)


def test_indices_and_exchanged_images_are_told() -> None:
    far = Grid((200, 100, 50), (1.0, 1.0, 2.0), (5000.0, 0.0, 0.0), axes=("x", "y", "z"))
    index = far.to_index(far.to_physical(INSIDE / (1, 1, 2)))
    placed = far.to_physical(index)
    with pytest.raises(InputError, match="As voxel indices they lie inside"):
        check_landmarks(Landmarks(index, INSIDE), far, IMAGE)
    with pytest.raises(InputError, match="exchanged"):
        check_landmarks(Landmarks(INSIDE, placed), far, IMAGE)
