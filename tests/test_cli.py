"""The command line as its users meet it: output, exit codes, no tracebacks."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import fields

import click
import numpy as np
import pytest

import itkstream
from itkstream.cli_options import resources_from, with_resources
from itkstream.geometry import AffineTransform, Grid
from itkstream.io import write_n5
from itkstream.io.transform_files import write_transform
from itkstream.phantoms import Motion, PhantomSettings, make_pair
from itkstream.workers import Resources

PAIR = ("register", "fix.n5/s0", "mov.n5/s0")


def run(*words, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "itkstream", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
    )


@pytest.fixture(scope="module")
def containers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    motion = Motion(rotation_deg=2, stretch=0.02, shear=0.01, shift=0.04, warp_um=2)
    rounds = make_pair(PhantomSettings((96, 80, 56), (1.0, 1.0, 1.3), 4, motion=motion))
    for name, image in (("fix.n5", rounds.fixed), ("mov.n5", rounds.moving)):
        write_n5(folder / name, "s0", image.read(), image.grid, chunks=(48, 48, 48))
    return folder


def test_registers_two_containers(containers, tmp_path):
    done = run(
        "register",
        containers / "fix.n5/s0",
        containers / "mov.n5/s0",
        "--out",
        tmp_path / "out",
        "--radii",
        2,
        6,
        "--match-threshold",
        0.5,
    )
    assert done.returncode == 0, done.stderr
    assert "local correlation" in done.stdout
    for name in (
        "registration.json",
        "transform.ome.zarr/zarr.json",
        "aligned.ome.zarr/zarr.json",
        "itk/affine.tfm",
        "itk/composite.h5",
    ):
        assert (tmp_path / "out" / name).is_file()


def test_plans_without_a_file_of_steps(containers, tmp_path):
    pair = (containers / "fix.n5/s0", containers / "mov.n5/s0")
    done = run("plan", *pair, "--block", 48, "--local-block", 0, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "deformable" in done.stdout
    assert "Deformable(blocksize=48)" in done.stdout
    assert "LocalAffines" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_file_says_what_is_done(containers, tmp_path):
    defaults = run("config", "--defaults")
    assert defaults.returncode == 0
    config = tmp_path / "run.yaml"
    config.write_text(defaults.stdout)
    assert run("config", config).stdout == defaults.stdout
    config.write_text(
        "steps:\n- intensity-affine: {model: translation, iterations: [9, 9]}\n"
        "initial_transform: start.tfm\nmoving_mask: [0]\n"
    )
    matrix = np.eye(4)
    matrix[0, 3] = 2.0
    write_transform(tmp_path / "start.tfm", AffineTransform(matrix), ("z", "y", "x"))
    pair = (containers / "fix.n5/s0", containers / "mov.n5/s0")
    done = run("register", *pair, "--config", config, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "registration.json").read_text())
    assert [s["name"] for s in report["steps"][:2]] == ["read", "intensity affine"]
    # Files are x first, arrays of N5 z first.
    turned = matrix[::-1, ::-1][[1, 2, 3, 0]][:, [1, 2, 3, 0]]
    assert report["steps"][0]["initial_affine"] == turned.tolist()
    # What the command line names comes first.
    other = run(
        "register", *pair, "--config", config, "--out", tmp_path / "other",
        "--initial", tmp_path / "nowhere.tfm",
    )  # fmt: skip
    assert other.returncode == 2
    assert "nowhere.tfm" in other.stderr


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stops_cleanly_in_the_middle_of_a_block(containers, tmp_path, stop):
    # Kernels of a block are under way in threads that nothing can end but the end of the process.
    words = ("register", "fix.n5/s0", "mov.n5/s0", "--out", tmp_path / "out", "--radii", 2, 6)
    program = subprocess.Popen(
        [sys.executable, "-u", "-m", "itkstream", *map(str, words), "--match-threshold", "0.5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=containers,
    )
    while "deformation" not in (line := program.stdout.readline()):
        assert line
    # The images are small: the whole step takes less than a second.
    time.sleep(0.1)
    program.send_signal(stop)
    began = time.monotonic()
    _, errors = program.communicate(timeout=120)
    assert time.monotonic() - began < 30  # a second on an idle machine
    assert program.returncode == 130
    assert "Traceback" not in errors
    assert "stopped" in errors


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((*PAIR, "--out", "new", "--config", "no.yaml"), "no file no.yaml"),
        ((*PAIR, "--out", "new", "--config", "no.yaml", "--seed", "1"), "exclude each other"),
        (("config",), "either --defaults or a FILE"),
        (("config", "--defaults", "no.yaml"), "either --defaults or a FILE"),
        ((*PAIR, "--out", "new", "--fixed-mask", "no.zarr"), "no.zarr"),
        (("register", "nowhere.n5/s0", "mov.n5/s0", "--out", "new"), "does not exist"),
        (("register", "fix.n5/s1", "mov.n5/s0", "--out", "new"), "s0"),
        ((*PAIR, "--out", "."), "never replaced"),
        (
            ("register", "fix.n5/s0", "mov.n5/s0", "--out", "new", "--block", "7"),
            "blocksize",
        ),
        (("register", "fix.n5/s0", "mov.n5/s0"), "--out"),
        (("register", "fix.n5/s0", "mov.n5/s0", "--out", "new", "--workers", "0"), "workers"),
        ((*PAIR, "--out", "new", "--cluster", "slrum"), "did you mean 'slurm'"),
        ((*PAIR, "--out", "new", "--queue", "short"), "queue is for batch systems"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_written(containers, words, expected):
    before = sorted(containers.rglob("*"))
    done = run(*words, cwd=containers)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(containers.rglob("*")) == before


def test_every_resource_has_its_option():
    words = "--workers 2 --threads 1 --memory 8GB --cluster local --cores 4 --processes 2"
    words += " --min-workers 1 --max-workers 3"
    seen = {}

    @click.command()
    @with_resources
    def command(**options):
        seen["resources"] = resources_from(options)

    command.main(words.split(), standalone_mode=False)
    assert seen["resources"] == Resources(
        n_workers=2,
        threads_per_worker=1,
        memory="8GB",
        cores=4,
        processes=2,
        min_workers=1,
        max_workers=3,
    )
    options = {option.name for option in command.params}
    assert options == {field.name for field in fields(Resources)} - {"config"}


def test_images_without_overlap_end_with_a_reason(containers, tmp_path):
    noise = np.random.default_rng(0).integers(90, 110, (64, 64, 48)).astype(np.uint16)
    write_n5(tmp_path / "noise.n5", "s0", noise, Grid(noise.shape, (1.0, 1.0, 1.3)))
    done = run(
        "register", containers / "fix.n5/s0", tmp_path / "noise.n5/s0", "--out", tmp_path / "out"
    )
    assert done.returncode == 2
    assert "no affine found" in done.stderr
    assert "Traceback" not in done.stderr


def test_says_its_version():
    assert itkstream.__version__ in run("--version").stdout
