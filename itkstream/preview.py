"""A preview of a registration: a few blocks at full settings, and what the whole would take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from dask.utils import format_bytes, format_time
from numpy.typing import NDArray

from itkstream.blocks.cropping import cropped_pair
from itkstream.errors import ItkstreamError
from itkstream.geometry import Grid, Image, Slices, Transform
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import write_text
from itkstream.numerics.evidence.quality import tissue_mask
from itkstream.numerics.sampling.mapping import affine_part
from itkstream.progress.reporters import Reporter
from itkstream.registration.folder import RunFolder
from itkstream.registration.plan import Plan, measure_rates
from itkstream.registration.register import run_request
from itkstream.registration.request import Given, Request, read_request
from itkstream.registration.settings import RegisterSettings
from itkstream.registration.steps import Step
from itkstream.report.page import laid_over, render, windows_of
from itkstream.report.planes import cut_planes
from itkstream.report.sources import open_sources, view_of
from itkstream.workers import Resources

__all__ = ["Preview", "PreviewedBlock", "choose_blocks", "preview_request"]

# Voxels per axis of a block: some seconds each.
_SIDE = 128
# A block is representative that has so large a share of the tissue of the fullest one.
_TISSUE = 0.5


@dataclass(frozen=True, eq=False)
class PreviewedBlock:
    """A block that was registered alone.

    Parameters
    ----------
    box : tuple of slice
        Its voxels, in the fixed image.
    before, after : float
        Local correlation of the images there, as the start of the block lays them and after all
        steps.
    seconds : float
        What it took.
    picture : dict
        Both images in a plane of it, for the page; empty where it could not be registered.
    reason : str
        Why it could not.
    """

    box: Slices
    before: float = 0.0
    after: float = 0.0
    seconds: float = 0.0
    picture: dict[str, Any] | None = None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Preview:
    """Result of `itkstream.pipelines.preview`.

    Parameters
    ----------
    page : Location
        The page that was written.
    plan : Plan
        Needs of the whole; its times are those of the blocks that were timed.
    blocks : tuple of PreviewedBlock
        The blocks that were registered.
    """

    page: Location
    plan: Plan
    blocks: tuple[PreviewedBlock, ...]


def preview_request(
    given: Given,
    request: Request,
    page: str | os.PathLike[str],
    blocks: int,
    reporter: Reporter,
) -> Preview:
    """Register a few blocks in a folder that is gone afterwards, and write a page about them."""
    place = Location.parse(page)
    plan = request.plan
    reporter.step("blocks are timed")
    timed = replace(plan, rates=measure_rates(*request.pair, plan.steps, blocks))
    with TemporaryDirectory(prefix="itkstream-") as work:
        start = _find_start(request, os.path.join(work, "start"), reporter)
        boxes = choose_blocks(request.pair, start, plan.settings.coarse_voxels, blocks)
        done = tuple(
            _register(given, request, start, box, os.path.join(work, str(number)), reporter)
            for number, box in enumerate(boxes, 1)
        )
    write_text(place, _page(request, timed, done))
    return Preview(place, timed, done)


def _find_start(request: Request, out: str, reporter: Reporter) -> Transform | None:
    """Find the affine of the whole images by the steps that need no start, on coarse levels."""
    searching = tuple(step for step in request.plan.steps if step.starts_anywhere)
    if request.initial is not None or not searching:
        return request.initial
    settings = _quietly(request.plan.settings)
    levels = tuple(view_of(image, settings.coarse_voxels).level for image in request.pair)
    coarse = Given(levels[0], levels[1])
    found = _run(coarse, searching, settings, request.resources, out, reporter)
    return affine_part(found.transform)


def choose_blocks(
    pair: tuple[Image, Image], start: Transform | None, voxels: float, count: int
) -> list[Slices]:
    """Choose blocks full of tissue that both images show, far from each other.

    `start` leads from fixed to moving points; a level has so many voxels at most.
    """
    fixed, moving = pair
    whole = view_of(fixed, voxels).overview()
    tissue = tissue_mask(whole.read()) & _shown(whole.grid, moving.grid, start)
    per_axis = [range(0, max(1, n - _SIDE // 2), _SIDE) for n in fixed.shape]
    corners = np.stack(np.meshgrid(*per_axis, indexing="ij"), axis=-1).reshape(-1, fixed.ndim)
    stops = np.minimum(corners + _SIDE, fixed.shape)
    boxes = [
        tuple(slice(int(a), int(b)) for a, b in zip(*ends, strict=True))
        for ends in zip(corners, stops, strict=True)
    ]
    shares = np.array([_share(tissue, whole.grid, fixed.grid, box) for box in boxes])
    chosen = [int(shares.argmax())]
    fit = shares >= _TISSUE * shares.max()
    while len(chosen) < min(count, int(fit.sum())):
        apart = np.min([np.linalg.norm(corners - corners[k], axis=1) for k in chosen], axis=0)
        chosen.append(int(np.where(fit, apart, -1.0).argmax()))
    return [boxes[k] for k in sorted(chosen)]


def _shown(grid: Grid, moving: Grid, start: Transform | None) -> NDArray[np.bool_]:
    """Points of a lattice that lie in the moving image."""
    points = grid.positions()
    return moving.contains(points if start is None else affine_part(start).apply(points))


def _share(tissue: NDArray[np.bool_], coarse: Grid, fine: Grid, box: Slices) -> float:
    """The share of tissue in a box of the fine lattice."""
    ends = fine.to_physical([[s.start for s in box], [s.stop - 1 for s in box]])
    low, high = np.rint(np.sort(coarse.to_index(ends), axis=0)).astype(int)
    part = tissue[tuple(slice(max(a, 0), b + 1) for a, b in zip(low, high, strict=True))]
    return float(part.mean()) if part.size else 0.0


def _register(
    given: Given,
    request: Request,
    start: Transform | None,
    box: Slices,
    out: str,
    reporter: Reporter,
) -> PreviewedBlock:
    """Register a block from the start, with the steps that refine."""
    reporter.step(f"block [{_words(box)}]")
    settings = _quietly(request.plan.settings)
    refining = tuple(s for s in request.plan.steps if start is None or not s.starts_anywhere)
    part = replace(given, crop=box, initial_transform=start)
    try:
        found = _run(part, refining, settings, request.resources, out, reporter)
        pair = cropped_pair(request.pair, box, start)
    except ItkstreamError as error:
        return PreviewedBlock(box, reason=str(error))
    told = found.facts["steps"]
    kept = [s["local_correlation"] for s in told if "local_correlation" in s and "dropped" not in s]
    planes = cut_planes(open_sources(Location.parse(out), pair))
    seconds = sum(step["seconds"] for step in told)
    picture = laid_over(planes[0], windows_of(planes))
    return PreviewedBlock(box, kept[0], kept[-1], seconds, picture)


def _run(
    given: Given,
    steps: Sequence[Step],
    settings: RegisterSettings,
    resources: Resources,
    out: str,
    reporter: Reporter,
) -> Any:
    request = read_request(given, tuple(steps), settings, resources, out)
    return run_request(request, RunFolder(out, request.names, False), reporter)


def _quietly(settings: RegisterSettings) -> RegisterSettings:
    """The same settings, without a report of each block."""
    return replace(settings, report=False)


def _page(request: Request, plan: Plan, blocks: Sequence[PreviewedBlock]) -> str:
    """Write the page: what the whole would take, and the blocks."""
    seconds = plan.seconds
    processes = f"{plan.workers} worker processes" if plan.workers else "this process"
    cards = [
        {"name": "time", "value": format_time(seconds)},
        {"name": "memory of a process", "value": format_bytes(int(plan.peak_memory))},
        {"name": "disk, before compression", "value": format_bytes(int(plan.disk))},
        {"name": "tasks", "value": f"{plan.tasks:,}"},
    ]
    names = ["/".join(PurePosixPath(name).parts[-2:]) for name in request.names]
    return render(
        "preview.html",
        title=f"{names[1]} to {names[0]}: preview",
        names=names,
        cards=cards,
        at_once=f"{processes} computes {plan.threads} blocks at a time",
        rows=[_row(plan, price) for price in plan.prices],
        blocks=[{**vars(block), "box": _words(block.box)} for block in blocks],
    )


def _row(plan: Plan, price: Any) -> dict[str, Any]:
    seconds = plan.seconds_of(price)
    return {
        "name": price.name,
        "blocks": price.blocks,
        "time": format_time(seconds),
        "memory": format_bytes(int(plan.memory_of(price))),
    }


def _words(box: Slices) -> str:
    return ", ".join(f"{s.start}:{s.stop}" for s in box)
