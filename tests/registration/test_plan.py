"""Plans: what a registration needs is told before it runs, fits the memory given, and is true."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import itkstream
from itkstream.errors import InputError, PlanError
from itkstream.geometry import Grid, Image
from itkstream.io import create_ome_zarr, open_image
from itkstream.phantoms import PhantomSettings, make_pair
from itkstream.pipelines import plan
from itkstream.registration.steps import Deformable, RansacAffine, RegisterSettings
from itkstream.registration.steps.prices import PROCESS_BYTES
from itkstream.workers import Resources


def virtual(tmp_path, shape=(2000, 1800, 900)):
    """A stored image of which no chunk was written."""
    path = tmp_path / "big.ome.zarr"
    if not path.exists():
        create_ome_zarr(path, Grid(shape, (1.0, 0.5, 0.5)), np.uint16, chunks=(128, 128, 128))
    return open_image(path)


class Unreadable:
    """Voxels that must not be read."""

    shape, dtype, ndim = (300, 300, 300), np.dtype(np.uint16), 3

    def __getitem__(self, key):
        raise AssertionError("a plan read voxels")


def test_a_plan_reads_nothing():
    image = Image(Unreadable(), Grid(Unreadable.shape, (1.0, 1.0, 1.0)))
    assert plan(image, image).fits


def test_sums_and_counts_agree_with_the_graphs(tmp_path):
    image = virtual(tmp_path)
    made = plan(image, image, resources=Resources(n_workers=2, memory_limit="64GB"))
    steps = {price.name: price for price in made.prices}
    # 2000/256, 1800/256 and 900/256, remainders of less than half a block joined.
    assert steps["deformable"].blocks == 8 * 7 * 4
    # Voxels of 1 x 0.5 x 0.5: a vector every 2 x 2 x 2 of them, if the softest field is chosen; how
    # many of these are kept is not known.
    vectors = 1000 * 900 * 450 * 3 * 4
    assert steps["deformable"].disk == steps["field"].disk == vectors
    assert steps["ITK files"].disk == 2 * vectors
    assert steps["aligned image"].disk == pytest.approx(image.grid.size * 2 * 8 / 7)
    assert made.disk == sum(price.disk for price in made.prices)
    assert made.seconds == pytest.approx(sum(map(made.seconds_of, made.prices)))
    assert (made.workers, made.threads) == (2, 1)


def test_fields_are_priced_where_they_are_written(tmp_path):
    image = virtual(tmp_path)
    half = 1000 * 900 * 450 * 3 * 4
    # Affines, and demons: half the resolution; kept as computed, a field is written once.
    for steps, names in (
        ((RansacAffine(),), ("sampled field", "field")),
        ((RansacAffine(), Deformable("demons")), ("deformable", "field")),
    ):
        for tolerance in (0.05, 0):
            settings = RegisterSettings(field_tolerance_vox=tolerance)
            made = plan(image, image, steps, settings, resources=Resources(memory_limit="64GB"))
            disk = {price.name: price.disk for price in made.prices if price.disk}
            written = names if tolerance else names[:1]
            assert {name: disk[name] for name in written} == dict.fromkeys(written, half)
            # The levels that are read once are kept.
            assert disk.keys() == {"read", *written, "aligned image", "error map", "ITK files"}


def test_memory_chooses_blocks_and_threads_that_fit(tmp_path):
    image = virtual(tmp_path)
    asked = {"cores": 8, "threads_per_worker": 8}
    large = plan(image, image, resources=Resources(memory_limit="4GB", **asked))
    assert not large.fits
    with pytest.raises(PlanError, match=r"deformable .* would need .* may have 3\.73 GiB.*fit"):
        large.require_fit()
    chosen = plan(image, image, resources=Resources(memory="4GB", **asked))
    assert chosen.peak_memory <= 4e9
    block = next(step.blocksize for step in chosen.steps if isinstance(step, Deformable))
    assert 64 <= block < 256
    # What the refusal proposes is what memory= would choose.
    with pytest.raises(PlanError, match=rf"Deformable\(blocksize={block}\)"):
        large.require_fit()
    with pytest.raises(PlanError, match="too little for a process"):
        plan(image, image, resources=Resources(memory="350MB", **asked))


def test_threads_are_given_up_before_a_run_is_refused(tmp_path):
    image = virtual(tmp_path)
    made = plan(image, image, resources=Resources(cores=64, memory_limit="16GB"))
    assert made.fits
    assert 1 <= made.threads < 64
    assert made.steps == plan(image, image).steps


@pytest.mark.parametrize("memory", ["1GB", "2GB", "6GB", "30GB"])
def test_every_fitted_plan_fits(tmp_path, memory):
    image = virtual(tmp_path)
    made = plan(image, image, resources=Resources(memory=memory, cores=4))
    assert made.fits
    assert made.peak_memory > PROCESS_BYTES


def test_a_run_that_cannot_fit_is_refused_before_anything_is_written(tmp_path):
    image = virtual(tmp_path)
    with pytest.raises(PlanError, match="would need"):
        itkstream.register(
            image, image, tmp_path / "out",
            resources=Resources(memory_limit="600MB", threads_per_worker=2),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_probes_tell_the_time():
    pair = make_pair(PhantomSettings((96, 96, 64), (1.0, 1.0, 1.0), 5, (96, 96, 64)))
    made = plan(pair.fixed, pair.moving, probe=2)
    assert set(made.rates) == {"read", "points", "deform", "warp"}
    assert made.seconds > 0
    twice = replace(made, rates={kind: 2 * rate for kind, rate in made.rates.items()})
    (aligned,) = (price for price in made.prices if price.name == "aligned image")
    assert twice.seconds_of(aligned) == pytest.approx(2 * made.seconds_of(aligned))
    assert replace(made, steps=(RansacAffine(),)).seconds < made.seconds
    with pytest.raises(InputError, match="probe must be"):
        plan(pair.fixed, pair.moving, probe=-1)


ERROR_BLOCK = """
import sys
from itkstream.cli.app import main
try:
    main()
except SystemExit as end:
    assert not end.code
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(int(line.split()[1]) * 1024, file=sys.stderr)
"""


def peak_of(*words):
    """The most memory the command line had resident, in bytes, as the kernel keeps it."""
    run = [sys.executable, "-c", ERROR_BLOCK, *words]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    return int(done.stderr.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak")
def test_the_memory_told_is_the_memory_used(tmp_path):
    """Between what is used and 1.6 times as much: prices are upper bounds, libraries differ."""
    pair = make_pair(PhantomSettings((176, 160, 112), (1.0, 1.0, 1.0), 5, (176, 160, 112)))
    paths = []
    for name, image in (("fixed", pair.fixed), ("moving", pair.moving)):
        path = tmp_path / f"{name}.ome.zarr"
        target = create_ome_zarr(path, image.grid, image.dtype, chunks=(64, 64, 64))
        target[...] = image.read()
        paths.append(str(path))
    made = plan(*paths)
    used = peak_of("register", *paths, "--out", str(tmp_path / "out"))
    assert used < made.peak_memory < 1.6 * used
    written = sum(f.stat().st_size for f in (tmp_path / "out").rglob("*") if f.is_file())
    assert written < made.disk


BLOCK_MEMORY = Path(__file__).parents[1] / "benchmarks" / "block_memory.py"


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux starts a peak anew"
)
@pytest.mark.parametrize(
    ("method", "shape"),
    [
        ("lcc", (96, 96, 96)),
        ("lcc", (900, 900)),
        ("mind", (96, 96, 96)),
        ("mind", (900, 900)),
        ("bspline", (96, 96, 96)),
        ("demons", (96, 96, 96)),
        ("symmetric-demons", (96, 96, 96)),
        ("diffeomorphic-demons", (96, 96, 96)),
    ],
)
def test_a_block_of_every_method_takes_what_it_is_priced(method, shape):
    image = Image(np.empty(shape, np.uint16), Grid(shape, (1.0,) * len(shape)))
    settings = RegisterSettings(coarse_voxels=image.grid.size)
    chosen = {"similarity": method} if method in ("lcc", "mind") else {"method": method}
    if method == "lcc":
        chosen["stiffness"] = 1.0
    made = plan(image, image, [Deformable(**chosen)], settings)
    price = next(p for p in made.prices if p.name == "deformable").per_block / image.grid.size
    told = subprocess.run(
        [sys.executable, str(BLOCK_MEMORY), method, *map(str, shape)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    taken = float(told.stdout)
    # Beside the block there are blended ones; as for whole runs, prices are upper bounds.
    assert taken < price < 1.6 * taken


def test_a_block_too_large_for_the_gpu_is_refused_with_what_fits(with_gpus, tmp_path):
    image = Image(Unreadable(), Grid(Unreadable.shape, (1.0, 1.0, 1.0), axes=("z", "y", "x")))
    assert "device_memory" not in plan(image, image).facts
    with_gpus(2, STAND_IN_BYTES="9e8")

    def planned(step=None, coarse=20e6, **given):
        steps = [step or Deformable()]
        settings = RegisterSettings(coarse_voxels=coarse)
        return plan(image, image, steps, settings, resources=Resources(engine="gpu", **given))

    made = planned()
    # A single block of 27 million voxels would be; so the level that is solved at once is smaller.
    assert not made.fits
    assert made.facts["device_memory"] > 9e8
    # The level that is solved at once goes there as well.
    assert planned(Deformable(blocksize=64)).facts["device_memory"] >= 60 * 150**3
    out = tmp_path / "out"
    with pytest.raises(PlanError, match=r"of a GPU, where it may have .*; it would fit with D"):
        itkstream.register(image, image, out, [Deformable()], resources=Resources(engine="gpu"))
    assert not out.exists()
    fitting = made.fitted()
    (step,) = fitting.steps
    again = planned(step, fitting.settings.coarse_voxels)
    assert again.require_fit() is again
    # Each of two workers has a GPU; of four, two share one.
    assert planned(step, fitting.settings.coarse_voxels, n_workers=2).fits
    assert planned(n_workers=2).device_memory == 2 * planned(n_workers=4).device_memory == 9e8
    with_gpus(1, STAND_IN_BYTES="1e6")
    with pytest.raises(PlanError, match=r"of a GPU are too little.*choose engine='cpu'"):
        planned().require_fit()
