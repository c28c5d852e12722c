"""An experiment of several rounds: one tissue stained again and again, nuclei and spots."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from itkstream.errors import InputError
from itkstream.geometry import Grid, Image
from itkstream.io import create_ome_zarr, write_pyramid
from itkstream.io.images.looks import show_channels, spread_hues
from itkstream.io.storage.outputs import claim_folder, write_text
from itkstream.phantoms.camera import Camera, camera_of, photograph, render
from itkstream.phantoms.cells import CellShapes, SpotTable, draw_spots
from itkstream.phantoms.lattice import extent_of, in_three
from itkstream.phantoms.pair import PhantomPair
from itkstream.phantoms.settings import Motion, PhantomSettings
from itkstream.phantoms.tissue import Scene, depths_at, draw_scene, restain
from itkstream.phantoms.truth import SyntheticTransform, draw_truth

__all__ = ["ExperimentSettings", "PhantomExperiment", "PhantomRound", "make_experiment"]

_CHANNELS = ("DAPI", "GeneA", "GeneB")
# Light of a spot, all of it in one voxel before the microscope's blur, and between the spots.
_SPOT_LIGHT, _GLOW = 1.5, 0.02
_TRUTH = "truth.json"


def _tissue() -> PhantomSettings:
    motion = Motion(rotation_deg=3.0, stretch=0.02, shear=0.01, shift=0.04, warp_um=3.0)
    return PhantomSettings((96, 96, 48), (1.0, 1.0, 1.5), missing=0.05, motion=motion)


@dataclass(frozen=True)
class ExperimentSettings:
    """Rounds, tissue and spots of a synthetic experiment.

    The first round is the reference. The last one sees only a part of what that sees, the one
    before it is turned, and all are shifted and bent as `tissue` says.

    Parameters
    ----------
    rounds : int
        Rounds, at least 2.
    tissue : PhantomSettings
        Voxels of each round, seed, nuclei, noise, and the motion of every round but the first.
    turn_deg : float
        Turn of the last round but one about the optical axis, in degrees.
    overlap : float
        Part of the first axis that the last round shares with the reference, 0 to 1.
    cytoplasm_um : float
        How far a cell reaches beyond its nucleus, in µm; up to half the way to the next one.
    rim_um : float
        Part of the cytoplasm, within the border, that has no spots, in µm: half a voxel by default,
        which is what a voxel of the labels may be wrong by.
    spots_per_cell : float
        Spots of each of the two genes per cell, on average.

    Raises
    ------
    InputError
        Where a value does not fit.

    Examples
    --------
    >>> itkstream.phantoms.ExperimentSettings(rounds=3, turn_deg=0.0).overlap
    0.5
    """

    rounds: int = 4
    tissue: PhantomSettings = field(default_factory=_tissue)
    turn_deg: float = 20.0
    overlap: float = 0.5
    cytoplasm_um: float = 2.0
    rim_um: float = 0.5
    spots_per_cell: float = 6.0

    def __post_init__(self) -> None:
        if self.rounds < 2:
            raise InputError(f"an experiment has at least 2 rounds; got {self.rounds}")
        if not 0 < self.overlap <= 1:
            raise InputError(f"overlap is a part, above 0 and up to 1; got {self.overlap}")
        if len(self.tissue.shape) != 3 or self.tissue.moving_shape or self.tissue.moving_spacing:
            raise InputError(
                "all rounds of an experiment have the same three axes: give tissue a shape and a "
                "spacing of 3, and no moving_shape or moving_spacing"
            )
        for name in ("cytoplasm_um", "rim_um", "spots_per_cell"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must be >= 0; got {getattr(self, name)}")
        if self.rim_um > self.cytoplasm_um:
            raise InputError(
                f"rim_um is a part of cytoplasm_um, {self.cytoplasm_um}; got {self.rim_um}"
            )

    @property
    def scene(self) -> PhantomSettings:
        """The tissue with the part that the last round alone sees."""
        shape = self.tissue.shape
        more = round((1 - self.overlap) * shape[0])
        return replace(self.tissue, shape=(shape[0] + more, *shape[1:]))


@dataclass(frozen=True, eq=False)
class PhantomRound:
    """One round of an experiment.

    Parameters
    ----------
    name : str
        Its name.
    channels : tuple of Image
        Nuclei, then the spots of each gene; axes x, y, z.
    truth : SyntheticTransform
        Points of the reference to points of this round, in µm.
    spots : SpotTable
        Spots that lie within this round's image; their positions, true cells and channels.

    Examples
    --------
    >>> tissue = itkstream.phantoms.PhantomSettings((32, 32, 24), radii_um=(2, 4))
    >>> settings = itkstream.phantoms.ExperimentSettings(rounds=2, tissue=tissue)
    >>> experiment = itkstream.phantoms.make_experiment(settings)
    >>> [image.channel for image in experiment.rounds[0].channels]
    ['DAPI', 'GeneA', 'GeneB']
    """

    name: str
    channels: tuple[Image, ...]
    truth: SyntheticTransform
    spots: SpotTable


@dataclass(frozen=True, eq=False)
class PhantomExperiment:
    """Rounds of one tissue, the cells in it, and all true maps.

    Parameters
    ----------
    rounds : tuple of PhantomRound
        The reference first.
    labels : Image
        Numbers of the cells on the voxels of the reference, int32; 0 between cells.
    tissue : ndarray of bool
        Where the tissue is, on the same voxels.
    nuclei : ndarray, (k, 3)
        Centres of the nuclei of cells 1 to k in reference space, in µm.
    radii : ndarray, (k,)
        Their mean radii, in µm.

    Examples
    --------
    >>> tissue = itkstream.phantoms.PhantomSettings((32, 32, 24), radii_um=(2, 4))
    >>> settings = itkstream.phantoms.ExperimentSettings(rounds=2, tissue=tissue)
    >>> experiment = itkstream.phantoms.make_experiment(settings)
    >>> experiment.labels.shape == experiment.rounds[0].channels[0].shape
    True
    """

    rounds: tuple[PhantomRound, ...]
    labels: Image
    tissue: NDArray[np.bool_]
    nuclei: NDArray[np.float64]
    radii: NDArray[np.float64]

    def pair(self, number: int) -> PhantomPair:
        """The nuclei of the reference and of another round, and the true map between them.

        Parameters
        ----------
        number : int
            Which round, counted from 0.

        Returns
        -------
        PhantomPair
            As `make_pair` makes one.

        Examples
        --------
        >>> tissue = itkstream.phantoms.PhantomSettings((32, 32, 24), radii_um=(2, 4))
        >>> settings = itkstream.phantoms.ExperimentSettings(rounds=2, tissue=tissue)
        >>> experiment = itkstream.phantoms.make_experiment(settings)
        >>> experiment.pair(1).fixed.shape == experiment.labels.shape
        True
        """
        fixed, other = self.rounds[0], self.rounds[number]
        truth = other.truth
        images = (fixed.channels[0], other.channels[0])
        return PhantomPair(*images, truth, self.tissue, self.nuclei, self.radii)

    def write(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write it as files of a folder.

        ``NAME.ome.zarr`` per round (c, z, y, x, with names of channels), ``labels.ome.zarr``,
        ``spots/NAME.csv`` per round (x_um, y_um, z_um in the round's own space, gene),
        ``truth/NAME.csv`` with the true cell and the true place in the reference of the same
        spots, and ``truth.json`` with the true maps.

        Parameters
        ----------
        folder : path
            The new folder.
        overwrite : bool
            Replace an earlier experiment there.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        ExistingOutputError
            Where something is there.

        Examples
        --------
        >>> tissue = itkstream.phantoms.PhantomSettings((32, 32, 24), radii_um=(2, 4))
        >>> settings = itkstream.phantoms.ExperimentSettings(rounds=2, tissue=tissue)
        >>> experiment = itkstream.phantoms.make_experiment(settings)
        >>> experiment.write("small").name
        'small'
        """
        with claim_folder(folder, _TRUTH, overwrite) as place:
            for each in self.rounds:
                _write_image(place / f"{each.name}.ome.zarr", each.channels, _CHANNELS)
                _write_spots(place, each)
            _write_image(place / "labels.ome.zarr", (self.labels,))
            maps = {each.name: json.loads(each.truth.to_json()) for each in self.rounds}
            write_text(place / _TRUTH, json.dumps(maps, indent=1))
        return Path(folder)


def make_experiment(settings: ExperimentSettings | None = None) -> PhantomExperiment:
    """Make an experiment: rounds of one synthetic tissue, related by known transforms.

    Parameters
    ----------
    settings : ExperimentSettings, optional
        Rounds, tissue, spots; default ``ExperimentSettings()``, four rounds of 96 x 96 x 48 voxels.

    Returns
    -------
    PhantomExperiment
        Images, true maps, cells and spots; the same bits for the same settings.

    Raises
    ------
    InputError
        Where the deformation asked for is too strong for the size of the image.

    Examples
    --------
    >>> tissue = itkstream.phantoms.PhantomSettings((32, 32, 24), radii_um=(2, 4))
    >>> settings = itkstream.phantoms.ExperimentSettings(rounds=2, tissue=tissue)
    >>> experiment = itkstream.phantoms.make_experiment(settings)
    >>> [one.name for one in experiment.rounds]
    ['round1', 'round2']
    """
    settings = settings or ExperimentSettings()
    grid = settings.tissue.fixed_grid
    scene, radii = draw_scene(settings.scene)
    shapes = CellShapes.of(scene, radii, (settings.cytoplasm_um, settings.rim_um))
    rounds = tuple(_make_round(k, settings, scene, shapes) for k in range(settings.rounds))
    depths = depths_at(grid.positions().reshape(-1, 3), scene.tissue)
    return PhantomExperiment(
        rounds,
        Image(shapes.labels(grid), grid, "labels"),
        (depths > 0).reshape(grid.shape),
        shapes.centres,
        radii,
    )


def _make_round(
    number: int, settings: ExperimentSettings, scene: Scene, shapes: CellShapes
) -> PhantomRound:
    """Stain the tissue anew, move it and take its pictures; the first round is not moved."""
    state = np.random.SeedSequence([settings.tissue.seed, number]).generate_state(1)
    own, grid = replace(settings.scene, seed=int(state[0])), settings.tissue.fixed_grid
    truth = SyntheticTransform(tuple(map(tuple, np.eye(4))))
    if number:
        scene = restain(scene, len(shapes.radii), own)
        truth = _placed(draw_truth(own), number, settings)
    spots = _spots_of_round(grid, scene, shapes, truth, (settings.spots_per_cell, own.seed))
    light = render(scene, grid, lambda p: in_three(truth.inverse(p)))
    name = f"round{number + 1}"
    nuclei = photograph(light, grid, own, camera_of(number > 0, own.restaining))
    pictures = [nuclei, *(_picture_spots(spots, c, grid, own) for c in (1, 2))]
    images = zip(pictures, _CHANNELS, strict=True)
    return PhantomRound(
        name,
        tuple(Image(data, grid, f"{name}:{c}", channel=c) for data, c in images),
        truth,
        spots,
    )


def _placed(
    truth: SyntheticTransform, number: int, settings: ExperimentSettings
) -> SyntheticTransform:
    """The map of a round with the turn or the shift that it alone has."""
    grid, last = settings.tissue.fixed_grid, settings.rounds - 1
    own = np.eye(4)
    if number == last:
        own[0, 3] = -(1 - settings.overlap) * grid.shape[0] * grid.spacing[0]
    elif number == last - 1:
        middle = truth(np.divide(extent_of(grid), 2))
        turn = Rotation.from_euler("z", settings.turn_deg, degrees=True).as_matrix()
        own[:3, :3], own[:3, 3] = turn, middle - turn @ middle
    matrix = own @ np.asarray(truth.matrix)
    return replace(truth, matrix=tuple(map(tuple, matrix)))


def _spots_of_round(
    grid: Grid,
    scene: Scene,
    shapes: CellShapes,
    truth: SyntheticTransform,
    drawing: tuple[float, int],
) -> SpotTable:
    """Draw the spots of both genes that a round's image contains; rate per cell, and seed."""
    per_cell, seed = drawing
    rng = np.random.default_rng([seed, 7])
    drawn = [draw_spots(scene, shapes, per_cell, rng) for _ in _CHANNELS[1:]]
    places = np.concatenate([points for points, _ in drawn])
    cells = np.concatenate([owners for _, owners in drawn])
    channels = np.repeat(np.arange(1, len(_CHANNELS)), [len(points) for points, _ in drawn])
    points = truth(places)
    seen = grid.contains(points)
    return SpotTable(points[seen], places[seen], cells[seen], channels[seen])


def _picture_spots(
    spots: SpotTable, channel: int, grid: Grid, settings: PhantomSettings
) -> NDArray[np.uint16]:
    """Counts of a channel of spots."""
    light = np.full(grid.shape, _GLOW, np.float32)
    index = grid.to_index(spots.points[spots.channels == channel])
    first = np.clip(np.floor(index).astype(int), 0, np.subtract(grid.shape, 2))
    part = np.clip(index - first, 0, 1)
    for corner in np.ndindex(2, 2, 2):
        share = np.prod(np.where(corner, part, 1 - part), axis=1)
        np.add.at(light, tuple((first + corner).T), np.float32(_SPOT_LIGHT) * share)
    camera = Camera(stream=7 + channel, gain=2600.0, gamma=1.0, offset=120.0, unevenness=0.08)
    return photograph(light, grid, settings, camera)


def _write_image(path: Path, images: Sequence[Image], names: Sequence[str] = ()) -> None:
    """Write images of one grid as an OME-Zarr, channels where they have names, else labels."""
    stored = [image.reorder(("z", "y", "x")) for image in images]
    grid, series = stored[0].grid, {"c": len(stored)} if names else None
    chunks = tuple(min(64, n) for n in grid.shape)
    level = create_ome_zarr(path, grid, stored[0].dtype, chunks=chunks, series=series)
    for number, image in enumerate(stored):
        level[(number, ...) if names else ...] = image.read()
    write_pyramid(path, labels=not names)
    if names:
        show_channels(path, spread_hues(names), ("c", *grid.axes))


def _write_spots(place: Path, each: PhantomRound) -> None:
    """Write the spots of a round, and beside them what is true of them."""
    spots, lengths = each.spots, ("x_um", "y_um", "z_um")
    genes = [_CHANNELS[c] for c in spots.channels]
    seen = zip(spots.points.tolist(), genes, strict=True)
    _write_rows(
        place / "spots" / f"{each.name}.csv", (*lengths, "gene"), ((*p, gene) for p, gene in seen)
    )
    true = zip(spots.reference.tolist(), spots.cells.tolist(), strict=True)
    _write_rows(
        place / "truth" / f"{each.name}.csv", (*lengths, "cell"), ((*p, cell) for p, cell in true)
    )


def _write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
