"""Metadata of stores with something wrong in them: an image, or an error of this package."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from itkstream.errors import ItkstreamError
from itkstream.geometry import Grid
from itkstream.io import create_ome_zarr, open_image, write_n5

CASES = 100  # of each of two or three containers per format
JUNK: list[Any] = [
    *(None, True, -1, 0, 3, 2.5, 1e308, 10**400, float("nan"), "", "x", "a/b", "../..", "µm"),
    *([], {}, [1], ["a"], {"a": 1}, [[1, 2], 3], [None, None, None], [0, 0, 0], ["x", "x", "x"]),
    *([1, 1, 1], ["z", "y", "x"], {"dimensions": 1}, {"path": "0"}, [{"name": "x"}], [{}]),
]
TURN = ((0.8, -0.6, 0.0), (0.6, 0.8, 0.0), (0.0, 0.0, 1.0))
VOXELS = np.arange(8 * 8 * 8, dtype=np.uint16).reshape(8, 8, 8)
FINE = Grid(VOXELS.shape, (1.0, 2.0, 3.0))


def n5(folder: Path) -> Path:
    """All dialects at once, which agree."""
    write_n5(folder, "g/s0", VOXELS, FINE)
    write_n5(folder, "g/s1", VOXELS[::2, ::2, ::2], FINE.shrink((2, 2, 2)), (2, 2, 2))
    more(folder / "g/s0/attributes.json", axes=["x", "y", "z"], units=["um"] * 3, offset=[0, 0, 0])
    transform = {"axes": ["z", "y", "x"], "scale": [6, 4, 2], "translate": [1.5, 1.0, 0.5]}
    more(folder / "g/s1/attributes.json", transform={**transform, "units": ["um"] * 3})
    more(folder / "g/attributes.json", scales=[[1, 1, 1], [2, 2, 2]], resolution=[1, 2, 3])
    return folder / "g" / "s1"


def n5_groups(folder: Path) -> Path:
    """Facts on the group alone, and levels by name."""
    write_n5(folder, "g/s0", VOXELS, FINE)
    write_n5(folder, "g/s1", VOXELS[::2, ::2, ::2], FINE.shrink((2, 2, 2)))
    for level in ("s0", "s1"):
        file = folder / "g" / level / "attributes.json"
        kept = ("dimensions", "blockSize", "dataType", "compression")
        file.write_text(json.dumps({k: json.loads(file.read_text())[k] for k in kept}))
    transform = {"axes": ["x", "y", "z"], "scale": [1, 2, 3], "units": ["nm", "nm", "nm"]}
    levels = [{"path": f"s{k}", "transform": transform} for k in range(2)]
    more(folder / "g/attributes.json", multiscales=[{"datasets": levels}], axes=["x", "y", "z"])
    return folder / "g"


def plain_zarr(folder: Path, version: int) -> Path:
    facts = {
        "spacing": [3, 2, 1],
        "voxel_size": [3, 2, 1],
        "resolution": [3, 2, 1],
        "pixelResolution": {"dimensions": [1, 2, 3], "unit": "um"},
        "units": ["um"] * 3,
        "offset": [1, 1, 1],
        "downsamplingFactors": [1, 1, 1],
        "_ARRAY_DIMENSIONS": ["z", "y", "x"],
    }
    zarr.create_array(
        str(folder), data=VOXELS, chunks=(4, 4, 4), zarr_format=version, attributes=facts
    )
    return folder


def ome_zarr(folder: Path, version: str) -> Path:
    grid = Grid(VOXELS.shape, (3.0, 2.0, 1.0), (5, 6, 7), TURN, axes=("z", "y", "x"))
    create_ome_zarr(folder, grid, np.uint16, chunks=(4, 4, 4), version=version)[...] = VOXELS
    return folder


def more(file: Path, **given: Any) -> None:
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**found, **given}))


def nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document, as what holds it and its key there."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield tree, key
        if isinstance(value, dict | list):
            yield from nodes(value)


def mutated(text: str, chance: random.Random) -> str:
    """A document with something wrong in it, here and there no document any more."""
    if chance.random() < 0.1:
        return text[: chance.randrange(len(text))]
    tree = copy.deepcopy(json.loads(text))
    for _ in range(chance.choice((1, 1, 1, 2))):
        places = list(nodes(tree))
        if not places:
            break
        holder, key = chance.choice(places)
        how = chance.random()
        if how < 0.2:
            del holder[key]
        elif how < 0.3 and isinstance(holder, list):
            holder.append(holder[key])
        else:
            holder[key] = copy.deepcopy(chance.choice(JUNK))
    return json.dumps(tree)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("n5", n5),
        ("n5-groups", n5_groups),
        ("zarr2", lambda folder: plain_zarr(folder, 2)),
        ("zarr3", lambda folder: plain_zarr(folder, 3)),
        ("ome-0.4", lambda folder: ome_zarr(folder, "0.4")),
        ("ome-0.5", lambda folder: ome_zarr(folder, "0.5")),
        ("ome-0.6", lambda folder: ome_zarr(folder, "0.6")),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_image_or_an_error_of_this_package(tmp_path, name, make):
    path = make(tmp_path / f"{name}.{'n5' if name.startswith('n5') else 'zarr'}")
    assert open_image(path).shape
    names = ("attributes.json", ".zarray", ".zattrs", ".zgroup", "zarr.json")
    files = sorted(file for file in tmp_path.rglob("*") if file.name in names)
    chance = random.Random(name)
    opened = 0
    for _ in range(CASES):
        file = chance.choice(files)
        whole = file.read_text()
        file.write_text(mutated(whole, chance))
        message = ""
        try:
            image = open_image(path)
            image[(slice(0, 2),) * image.ndim].read()
            opened += 1
        except ItkstreamError as error:
            message = str(error)
        except Exception as error:
            raise AssertionError(f"{file.name}: {file.read_text()}") from error
        finally:
            file.write_text(whole)
        # An error says where to look.
        assert not message or str(tmp_path) in message
    assert 0 < opened < CASES
