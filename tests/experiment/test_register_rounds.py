"""Experiments from images to folder: transforms, joined image, page; bad rounds; killed runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ngff_zarr
import numpy as np
import pytest
import zarr
from round_files import QUICK, STEPS, write_round

import itkstream
from itkstream.errors import ExistingOutputError, InputError, OutputError
from itkstream.experiment.register import Experiment, register_rounds
from itkstream.experiment.rounds.manifest import Round
from itkstream.geometry import Image
from itkstream.io import write_n5
from itkstream.io.storage.disk import files_stamp
from itkstream.progress.reporters import LogReporter
from itkstream.workers import Resources

pytestmark = pytest.mark.slow

QUICK_STEPS = """
error_map: false
report: false
steps:
  - ransac-affine: {search: never}
"""


@pytest.fixture(scope="module")
def experiment(three_rounds, noise, tmp_path_factory) -> Experiment:
    """Three rounds and one of noise, onto the second of the four."""
    one, two, three = three_rounds.paths
    out = tmp_path_factory.mktemp("experiment") / "out"
    rounds = [Round("noise", str(noise)), one, two, three]
    return register_rounds(rounds, out, reference="r1", channel="DAPI", steps=STEPS, settings=QUICK)


def test_every_round_is_brought_onto_the_reference(experiment, three_rounds):
    by_name = {r.name: r for r in experiment.rounds}
    assert [r.outcome for r in experiment.rounds][1:] == ["reference", "good", "good"]
    for name, pair in zip(("r2", "r3"), three_rounds.pairs, strict=True):
        found = itkstream.read_transform(by_name[name].transform, pair.fixed.grid.axes)
        # The affine alone leaves the warp, of half a µm at most, and what the fit is off.
        assert pair.error(found.apply).summary()["p95_um"] < 1.5


def test_a_bad_round_stops_no_other(experiment):
    bad = experiment.rounds[0]
    assert bad.outcome == "failed"
    assert "no affine found" in bad.failed
    assert bad.transform is None
    assert experiment.faults == ("RegistrationError",)
    assert not (experiment.out / "rounds/noise/registration.json").exists()


def test_the_joined_image_holds_all_channels_of_the_others(experiment, three_rounds):
    path = str(experiment.joined)
    peer = ngff_zarr.from_ome_zarr(path, validate=True, version="0.5")
    labels = [channel.label for channel in peer.metadata.omero.channels]
    genes = ("gene1", "gene2", "gene3")
    wanted = [f"r{k}:{c}" for k, gene in enumerate(genes, 1) for c in (gene, "DAPI")]
    assert labels == wanted
    assert len({channel.color for channel in peer.metadata.omero.channels}) == 6
    assert zarr.open_array(f"{path}/0", mode="r").metadata.dimension_names == ("c", "z", "y", "x")
    for k in (2, 3):
        aligned = itkstream.open_image(experiment.out / f"rounds/r{k}/aligned.ome.zarr")
        joined = itkstream.open_image(path, channel=f"r{k}:DAPI")
        assert joined.grid == aligned.grid
        np.testing.assert_array_equal(joined.read(), aligned.read())
    for channel in ("gene1", "DAPI"):
        given = itkstream.open_image(three_rounds.paths[0], channel=channel)
        joined = itkstream.open_image(path, channel=f"r1:{channel}")
        np.testing.assert_array_equal(joined.read(), given.read())


def test_a_channel_beside_the_registered_one_goes_the_same_way(experiment, tmp_path, three_rounds):
    out = tmp_path / "gene.ome.zarr"
    transform = itkstream.read_transform(experiment.out / "rounds/r2/transform.ome.zarr")
    gene = itkstream.open_image(three_rounds.paths[1], channel="gene2")
    fixed = itkstream.open_image(three_rounds.paths[0], channel=0)
    itkstream.write_resampled(out, gene, transform, fixed.grid, itkstream.WarpSettings())
    joined = itkstream.open_image(experiment.joined, channel="r2:gene2")
    np.testing.assert_array_equal(joined.read(), itkstream.open_image(out).read())


def test_cycles_are_measured_and_noted(experiment):
    (cycle,) = experiment.facts["cycles"]
    assert cycle["rounds"] == ["r2", "r3"]
    assert cycle["agrees"]
    assert cycle["median_um"] < 1.5


def test_the_folder_says_what_each_round_is(experiment, three_rounds):
    facts = json.loads((experiment.out / "experiment.json").read_bytes())
    assert facts["version"] == 1
    assert facts["complete"]
    entry = facts["rounds"][2]
    assert entry["image"] == str(three_rounds.paths[1])
    assert entry["options"]["channel"] == "DAPI"
    assert entry["channels"] == ["gene2", "DAPI"]
    assert entry["folder"] == "rounds/r2"
    assert (experiment.out / entry["transform"]).exists()
    assert facts["rounds"][1]["transform"] is None


def test_the_page_shows_all_rounds_and_fetches_nothing(experiment):
    page = experiment.overview.read_bytes().decode()
    numbers = json.loads((experiment.out / "overview.json").read_bytes())
    assert "2 good, 1 failed" in page
    assert 'href="rounds/r2/report.html"' not in page  # none was asked for
    assert "no affine found" in page
    assert page.count("data:image/jpeg") == 3 * 3 * 2  # rounds, planes, before and after
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert [r["name"] for r in numbers["rounds"]] == ["noise", "r1", "r2", "r3"]


def test_the_same_call_again_changes_nothing(experiment, three_rounds, noise):
    out = experiment.out
    parts = ["joined.ome.zarr", *(f"rounds/r{k}/transform.ome.zarr" for k in (2, 3))]
    before = [files_stamp(str(out / part)) for part in parts]
    rounds = [Round("noise", str(noise)), *three_rounds.paths]
    again = register_rounds(
        rounds, out, reference="r1", channel="DAPI", steps=STEPS, settings=QUICK
    )
    assert [files_stamp(str(out / part)) for part in parts] == before
    assert [r.outcome for r in again.rounds] == [r.outcome for r in experiment.rounds]


def test_another_experiment_needs_another_folder(experiment, three_rounds):
    with pytest.raises(ExistingOutputError, match="complete experiment of other rounds"):
        register_rounds(three_rounds.paths[:2], experiment.out, steps=STEPS, settings=QUICK)
    assert experiment.overview.exists()


def test_an_experiment_is_replaced_as_a_whole(experiment, three_rounds, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(str(experiment.out), out)
    found = register_rounds(
        three_rounds.paths[:2], out, steps=STEPS, settings=QUICK, overwrite=True
    )
    assert [r.name for r in found.rounds] == ["r1", "r2"]
    assert sorted(p.name for p in (out / "rounds").iterdir()) == ["r2"]
    assert not list(tmp_path.glob(".*"))
    assert ".draft" not in found.overview.read_bytes().decode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"channel": "gene2"}, "2 of 3 rounds cannot be registered; nothing was computed"),
        ({"reference": 4}, "one of 3 rounds"),
        ({"reference": "r9"}, "unknown reference"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(three_rounds, tmp_path, change, said):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=said):
        register_rounds(three_rounds.paths, out, steps=STEPS, **change)
    assert not out.exists()


def test_an_output_around_an_input_is_refused(three_rounds):
    with pytest.raises(InputError, match="holds what is read"):
        register_rounds(three_rounds.paths, three_rounds.paths[0].parent)


def test_a_place_of_somebody_else_is_refused(three_rounds, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ExistingOutputError, match=r"no experiment\.json"):
        register_rounds(three_rounds.paths, tmp_path, steps=STEPS, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_rounds_of_different_types_are_joined_in_one_that_holds_both(
    three_rounds, tmp_path, command
):
    pair = three_rounds.pairs[0]

    scaled = pair.moving.read() // 64
    path = write_round(tmp_path / "bytes.ome.zarr", Image(scaled, pair.moving.grid), "g", "uint8")
    config = tmp_path / "steps.yaml"
    config.write_text(QUICK_STEPS)
    done = command(
        *("rounds", path, three_rounds.paths[0], "--out", tmp_path / "out"),
        *("--reference", "r1", "--channel", "DAPI", "--config", config),
    )
    assert done.returncode == 0, done.stderr
    assert "round 1 of 1, bytes: affine" in done.stdout
    joined = itkstream.open_image(tmp_path / "out/joined.ome.zarr", channel="bytes:DAPI")
    assert joined.dtype == np.uint16
    assert joined.read().max() <= 255


def test_the_command_ends_with_4_where_a_round_is_not_aligned(
    three_rounds, noise, tmp_path, command
):
    (tmp_path / "m.csv").write_text(
        f"name,path,channel\nfirst,{three_rounds.paths[0]},DAPI\nother,{noise},\n"
    )
    (tmp_path / "steps.yaml").write_text(
        "error_map: false\nreport: false\nsteps: [ransac-affine]\n"
    )
    done = command("rounds", "m.csv", "--out", "out", "--config", "steps.yaml", cwd=tmp_path)
    assert done.returncode == 4
    assert "left out, as they failed: other" in done.stdout
    assert (tmp_path / "out/overview.html").exists()


def test_a_round_that_cannot_be_read_ends_with_1_and_stops_no_other(
    three_rounds, tmp_path, command
):
    torn = tmp_path / "torn.ome.zarr"
    shutil.copytree(three_rounds.paths[1], torn)
    chunk = torn / "0/c/1/0/0/0"  # of the channel that is registered
    chunk.write_bytes(chunk.read_bytes()[:100])
    (tmp_path / "steps.yaml").write_text(QUICK_STEPS)
    one, _, three = three_rounds.paths
    words = ("--channel", "DAPI", "--out", "out", "--config", "steps.yaml")
    done = command("rounds", one, torn, three, *words, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    found = Experiment.read(tmp_path / "out")
    assert [r.outcome for r in found.rounds] == ["reference", "failed", "good"]
    assert found.facts["complete"]
    assert {c["round"] for c in found.facts["joined"]["channels"]} == {"r1", "r3"}


def test_steps_of_a_pair_are_no_steps_of_rounds(three_rounds, tmp_path, command):
    (tmp_path / "c.yaml").write_text("moving_mask: m.nrrd\n")
    done = command("rounds", *three_rounds.paths, "--out", "o", "--config", "c.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "c.yaml says more than steps, settings and engine" in done.stderr


def test_rounds_of_other_axes_are_joined_on_z_y_x(three_rounds, tmp_path):
    pair = three_rounds.pairs[0]
    for name, image in (("one", pair.fixed), ("two", pair.moving)):
        assert image.grid.axes == ("x", "y", "z")
        write_n5(tmp_path / f"{name}.n5", "s0", image.read(), image.grid, chunks=(32,) * 3)
    rounds = [tmp_path / f"{name}.n5/s0" for name in ("one", "two")]
    found = register_rounds(rounds, tmp_path / "out", steps=STEPS, settings=QUICK)
    assert [r.name for r in found.rounds] == ["one-s0", "two-s0"]
    first, second = (itkstream.open_image(found.joined, channel=k) for k in (0, 1))
    assert first.grid.axes == ("z", "y", "x")
    np.testing.assert_array_equal(first.reorder(("x", "y", "z")).read(), pair.fixed.read())
    aligned = itkstream.open_image(found.out / "rounds/two-s0/aligned.ome.zarr")
    np.testing.assert_array_equal(second.read(), aligned.read())
    assert second.channel == "two-s0:0"


def test_rounds_that_disagree_are_to_be_looked_at(three_rounds, tmp_path):
    image = three_rounds.pairs[1].moving
    moved = Image(image.data, replace(image.grid, origin=(9.0, 0.0, 0.0)))
    far = write_round(tmp_path / "far.ome.zarr", moved, "gene")
    # Without steps both stay as their files place them, and nothing speaks against either alone.
    rounds = [*three_rounds.paths[:2], far]
    found = register_rounds(rounds, tmp_path / "out", channel="DAPI", steps=(), settings=QUICK)
    (cycle,) = found.facts["cycles"]
    assert not cycle["agrees"]
    assert cycle["median_um"] == pytest.approx(9.0, abs=3.5)  # they are some µm apart themselves
    assert [r.outcome for r in found.rounds] == ["reference", "look", "look"]
    assert "matched directly with far" in found.rounds[1].verdict.reasons[0]
    assert found.facts["joined"]["channels"][-1]["label"] == "far:DAPI"


@pytest.mark.parametrize("parallel", ["1", "2"])
def test_a_killed_run_goes_on_to_the_same_bits(three_rounds, tmp_path, parallel):
    program = Path(__file__).with_name("killed_rounds.py")
    words = [str(path) for path in three_rounds.paths]
    done = subprocess.run(
        [sys.executable, program, tmp_path, parallel, *words],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    kills = int(done.stdout.split()[-1])
    assert kills >= 2
    for part in ("joined.ome.zarr", "rounds/r2/transform.ome.zarr", "rounds/r3/aligned.ome.zarr"):
        assert _bytes(tmp_path / "out" / part) == _bytes(tmp_path / "whole" / part)


def test_what_stops_one_round_stops_those_beside_it(three_rounds, tmp_path):
    class Stops(LogReporter):
        def note(self, text):
            told.append(text)
            if text == "round 2 of 2, r3: affine":
                raise OutputError("the disk is full")

    told: list[str] = []
    with pytest.raises(OutputError, match="disk is full"):
        register_rounds(
            three_rounds.paths,
            tmp_path / "out",
            channel="DAPI",
            parallel=2,
            steps=STEPS,
            settings=QUICK,
            resources=Resources(n_workers=1),
            reporter=Stops(),
        )
    assert any(text.startswith("round 1 of 2, r2: ") for text in told)
    facts = json.loads((tmp_path / "out/experiment.json").read_bytes())
    assert not facts["complete"]
    assert [entry["failed"] for entry in facts["rounds"]] == [None] * 3


def test_rounds_side_by_side_need_workers(three_rounds, tmp_path):
    with pytest.raises(InputError, match="3 rounds at a time share workers, and there are none"):
        register_rounds(three_rounds.paths, tmp_path / "out", channel="DAPI", parallel=3)
    with pytest.raises(InputError, match="parallel must be at least 1"):
        register_rounds(three_rounds.paths, tmp_path / "out", channel="DAPI", parallel=0)


def _bytes(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and ".itkstream" not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}
