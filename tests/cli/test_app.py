"""The command line as its users meet it: output, exit codes, no tracebacks."""

import json
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import fields

import click
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import zarr
from click.testing import CliRunner
from matplotlib.image import imread

import itkstream
from itkstream.apply.products import write_resampled
from itkstream.cli.app import commands
from itkstream.cli.options import (
    collect_image_options,
    collect_resources,
    name_options,
    with_image_options,
    with_resources,
)
from itkstream.geometry import AffineTransform, Grid
from itkstream.io import ImageOptions, open_image, write_n5
from itkstream.io.transforms.files import write_transform
from itkstream.napari_reader import read_layers
from itkstream.numerics.sampling.warping import WarpSettings
from itkstream.phantoms import Motion, PhantomSettings, make_pair
from itkstream.registration.folder import registered_images
from itkstream.workers import Resources

PAIR = ("register", "fix.n5/s0", "mov.n5/s0")
STEPS = "steps:\n- intensity-affine: {model: translation, iterations: [9, 9]}\nerror_map: false\n"
BARE = ("register", "fix.zarr", "mov.zarr")


def run(*words, cwd=None):
    """The command as a process of its own; `command` is the same in this one."""
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
        # The same without a word on spacing, and in the second of two channels.
        voxels = image.read()
        both = np.stack([np.zeros_like(voxels), voxels])
        place = folder / name.replace("n5", "zarr")
        zarr.create_array(str(place), data=voxels.transpose(2, 1, 0), chunks=(28, 40, 48))
        place = folder / f"channels_{place.name}"
        zarr.create_array(
            str(place), data=both, chunks=(1, 48, 48, 48), dimension_names=("c", "x", "y", "z")
        )
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


def test_plans_without_a_file_of_steps(command, containers, tmp_path):
    pair = (containers / "fix.n5/s0", containers / "mov.n5/s0")
    done = command("plan", *pair, "--block", 48, "--local-block", 0, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "deformation" in done.stdout
    assert "--block 48" in done.stdout
    assert "piecewise" not in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_file_says_what_is_done(command, containers, tmp_path):
    defaults = command("config", "--defaults")
    assert defaults.returncode == 0
    config = tmp_path / "run.yaml"
    config.write_text(defaults.stdout)
    assert command("config", config).stdout == defaults.stdout
    config.write_text(
        "steps:\n- intensity-affine: {model: translation, iterations: [9, 9]}\n"
        "initial_transform: start.tfm\nmoving_mask: [0]\n"
    )
    matrix = np.eye(4)
    matrix[0, 3] = 2.0
    write_transform(tmp_path / "start.tfm", AffineTransform(matrix), ("z", "y", "x"))
    pair = (containers / "fix.n5/s0", containers / "mov.n5/s0")
    done = command("register", *pair, "--config", config, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "registration.json").read_text())
    assert [s["name"] for s in report["steps"][:2]] == ["read", "intensity affine"]
    # Files are x first, arrays of N5 z first.
    turned = matrix[::-1, ::-1][[1, 2, 3, 0]][:, [1, 2, 3, 0]]
    assert report["steps"][0]["initial_affine"] == turned.tolist()
    # What the command line names comes first.
    other = command(
        "register", *pair, "--config", config, "--out", tmp_path / "other",
        "--initial", tmp_path / "nowhere.tfm",
    )  # fmt: skip
    assert other.returncode == 2
    assert "nowhere.tfm" in other.stderr


@pytest.mark.slow
def test_images_that_lie_otherwise_are_told_by_letters(command, containers, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("steps: []\n")
    words = ("register", containers / "fix.n5/s0", containers / "mov.n5/s0", "--config", config)
    done = command(*words, "--out", tmp_path / "out", "--orient", "LPS", "RAS")
    # They do not lie so, which is told.
    assert (done.returncode, done.stderr) == (4, "")
    assert "verdict: failed" in done.stdout
    report = json.loads((tmp_path / "out" / "registration.json").read_text())
    matrix = np.array(report["steps"][0]["initial_affine"])
    np.testing.assert_array_equal(matrix[:3, :3], np.diag([-1.0, -1.0, 1.0]))
    # The run is repeated from its own report.
    again = (*words[:3], "--config", tmp_path / "out" / "registration.json")
    assert command(*again, "--out", tmp_path / "again").returncode == 4
    repeated = json.loads((tmp_path / "again" / "registration.json").read_text())
    assert repeated["steps"][0]["initial_affine"] == matrix.tolist()
    for codes, said in (
        (("LPS", "RRS"), "moving image is three capitals"),
        (("asr", "RAS"), "LIP"),
    ):
        done = command(*words, "--out", tmp_path / "not", "--orient", *codes)
        assert done.returncode == 2
        assert said in done.stderr


@pytest.mark.slow
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
            "--block must be an even number",
        ),
        (("register", "fix.n5/s0", "mov.n5/s0"), "--out"),
        (("register", "fix.n5/s0", "mov.n5/s0", "--out", "new", "--workers", "0"), "workers"),
        ((*PAIR, "--out", "new", "--cluster", "slrum"), "did you mean 'slurm'"),
        ((*PAIR, "--out", "new", "--queue", "short"), "queue is for batch systems"),
        (
            (*BARE, "--out", "new"),
            "pass --fixed-spacing, one number per axis in the order z, y, x",
        ),
        ((*BARE, "--out", "new", "--fixed-spacing", "1"), "mov.zarr does not say"),
        ((*BARE, "--out", "new", "--spacing", "1,1"), "--spacing needs one number or 3"),
        ((*BARE, "--out", "new", "--spacing", "1;1;1"), "such as 2,0.5,0.5"),
        ((*PAIR, "--out", "new", "--moving-channel", "2"), "mov.n5/s0 has no channel 2"),
        ((*PAIR, "--out", "new", "--fixed-unit", "pixel"), "pass --unit with one of"),
        ((*PAIR, "--out", "new", "--level", "3"), "has no level 3"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_written(command, containers, words, expected):
    before = sorted(containers.rglob("*"))
    done = command(*words, cwd=containers)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(containers.rglob("*")) == before


@pytest.fixture(scope="module")
def of_channels(command, containers, tmp_path_factory):
    """A run of the second channels, whose files state no spacing."""
    out = tmp_path_factory.mktemp("channels")
    (out / "run.yaml").write_text(
        STEPS + "fixed: {spacing: [1, 1, 1.3], channel: 0}\nmoving: {channel: 1, spacing: 7}\n"
    )
    words = ("--config", out / "run.yaml", "--axes", "cxyz", "--fixed-channel", "1")
    pair = ("channels_fix.zarr", "channels_mov.zarr")
    done = command(
        "register", *pair, *words, "--moving-spacing", "1,1,1.3", "--out", out / "run",
        cwd=containers,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out / "run"


def test_what_is_said_of_an_image_counts(command, containers, of_channels):
    report = json.loads((of_channels / "registration.json").read_text())
    for side, name in (("fixed", "fix"), ("moving", "mov")):
        assert report[side]["opened"] == {
            "path": str(containers / f"channels_{name}.zarr"),
            "channel": 1,
            "time": 0,
            "level": 0,
            "voxel_spacing": [1, 1, 1.3],
            "axes": ["c", "x", "y", "z"],
        }
    # The first channel is empty.
    for image, name in zip(registered_images(of_channels), ("fix", "mov"), strict=True):
        wanted = itkstream.open_image(containers / f"{name}.n5/s0")
        np.testing.assert_array_equal(image.read(), wanted.read())
        assert image.grid == wanted.grid
    # Nothing but their files tells these images from those that state all.
    (of_channels.parent / "plain.yaml").write_text(STEPS)
    plain = command(
        *PAIR, "--config", of_channels.parent / "plain.yaml", "--out", of_channels.parent / "plain",
        cwd=containers,
    )  # fmt: skip
    assert plain.returncode == 0, plain.stderr
    same = json.loads((of_channels.parent / "plain" / "registration.json").read_text())
    cost = {"seconds": 0, "peak_bytes": 0}
    found = [[step | cost for step in r["steps"]] for r in (report, same)]
    assert found[0] == found[1]


def test_another_channel_is_another_run(command, containers, of_channels):
    done = command(
        "register", "channels_fix.zarr", "channels_mov.zarr", "--axes", "cxyz",
        "--spacing", "1,1,1.3", "--fixed-channel", 1, "--out", of_channels,
        "--config", of_channels.parent / "run.yaml", "--moving-channel", 0, cwd=containers,
    )  # fmt: skip
    assert done.returncode == 3
    assert "never replaced" in done.stderr or "overwrite" in done.stderr


def test_bundles_and_layers_show_the_channel_that_was_registered(
    command, containers, of_channels, tmp_path
):
    done = command("export", of_channels, "--slicer", tmp_path / "slicer")
    assert done.returncode == 0, done.stderr
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "slicer" / "moving.nrrd"))).any()
    layers = {attributes["name"]: data for data, attributes, _ in read_layers(str(of_channels))}
    for side, name in (("fixed", "fix"), ("moving", "mov")):
        wanted = itkstream.open_image(containers / f"{name}.n5/s0").read().transpose(2, 1, 0)
        np.testing.assert_array_equal(layers[side].compute(), wanted)


def test_images_of_other_commands_take_their_options(command, containers, of_channels, tmp_path):
    said = ("--axes", "cxyz", "--spacing", "1,1,1.3", "--channel", "all")
    moving = containers / "channels_mov.zarr"
    done = command("apply", of_channels, moving, tmp_path / "a.ome.zarr", *said)
    assert done.returncode == 0, done.stderr
    aligned = itkstream.open_image(of_channels / "aligned.ome.zarr").read()
    both = [itkstream.open_image(tmp_path / "a.ome.zarr", channel=c).read() for c in (0, 1)]
    assert not both[0].any()
    np.testing.assert_array_equal(both[1], aligned)
    like = (containers / "fix.zarr", "--like-spacing", "2.6,2,2", "--like-axes", "zyx")
    done = command(
        "apply", of_channels, moving, tmp_path / "b.ome.zarr", *said[:4], "--like", *like
    )
    assert done.returncode == 0, done.stderr
    assert itkstream.open_image(tmp_path / "b.ome.zarr").spacing == (2.6, 2, 2)


def test_what_was_said_of_the_registered_image_is_known(command, containers, of_channels, tmp_path):
    moving = "channels_mov.zarr"
    done = command("apply", of_channels, moving, tmp_path / "a.ome.zarr", cwd=containers)
    assert done.returncode == 0, done.stderr
    assert f"channel 1 of {containers / moving}" in done.stdout
    aligned = itkstream.open_image(of_channels / "aligned.ome.zarr").read()
    np.testing.assert_array_equal(itkstream.open_image(tmp_path / "a.ome.zarr").read(), aligned)
    # Of any other image nothing is known.
    fixed = ("channels_fix.zarr", tmp_path / "b.ome.zarr", "--axes", "cxyz", "--spacing", 1)
    done = command("apply", of_channels, *fixed, cwd=containers)
    assert done.returncode == 2
    assert "2 channels, and nothing says which is meant: 0, 1 (without names)" in done.stderr
    assert "pass --channel, a number or a name, or all" in done.stderr
    assert not (tmp_path / "b.ome.zarr").exists()


@pytest.fixture(scope="module")
def stained(containers, tmp_path_factory):
    """The pair as OME-TIFF of two channels: nuclei, named in the fixed image alone, and nothing."""
    folder = tmp_path_factory.mktemp("stained")
    sizes = {"PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0, "PhysicalSizeZ": 1.3}
    for name, stain in (("fix", "DAPI"), ("mov", "405 nm")):
        voxels = itkstream.open_image(containers / f"{name}.n5/s0").read().transpose(2, 1, 0)
        about = {"axes": "CZYX", "Channel": {"Name": ["Atto 565", stain]}, **sizes}
        both = np.stack([np.zeros_like(voxels), voxels])
        tifffile.imwrite(folder / f"{name}.ome.tif", both, metadata=about, compression="zlib")
    (folder / "run.yaml").write_text(STEPS)
    return folder


@pytest.mark.slow
def test_a_channel_is_named_or_alone_a_stain_of_nuclei(command, containers, stained):
    words = ("register", "fix.ome.tif", "mov.ome.tif", "--config", "run.yaml", "--out", "run")
    done = command("plan", "fix.ome.tif", "mov.ome.tif", cwd=stained)
    assert done.returncode == 2
    assert "mov.ome.tif has 2 channels" in done.stderr
    assert "0 'Atto 565', 1 '405 nm'; pass --moving-channel, a number or a name" in done.stderr
    done = command(*words, "--moving-channel", "405 NM", cwd=stained)
    assert done.returncode == 0, done.stderr
    assert "channel 1 of the fixed image, 'DAPI'" in done.stdout
    assert "channel 1 of the moving image, '405 nm'" in done.stdout
    report = json.loads((stained / "run" / "registration.json").read_text())
    for side, name in (("fixed", "DAPI"), ("moving", "405 nm")):
        assert report[side]["channel_name"] == name
        assert report[side]["opened"]["channel"] == 1
    page = (stained / "run" / "report.html").read_text()
    assert "channel 1 (DAPI)" in page
    assert "channel 1 (405 nm)" in page
    # The report of a run says it all: the same command does the same again, and finds it done.
    (stained / "again.json").write_bytes((stained / "run" / "registration.json").read_bytes())
    again = (*words[:3], "--config", "again.json", "--out", "run")
    done = command(*again, cwd=stained)
    assert done.returncode == 0, done.stderr
    done = command(*again, "--moving-channel", 0, cwd=stained)
    assert done.returncode == 3
    assert "overwrite" in done.stderr


def test_options_of_one_image_come_before_those_of_both():
    seen = {}

    @click.command()
    @with_image_options("fixed", "moving")
    def command(**options):
        seen.update(
            fixed=collect_image_options(options, "fixed", ImageOptions(time=5, level=2)),
            moving=collect_image_options(options, "moving"),
            like=collect_image_options(options, "like", common=False),
        )

    words = "--channel 1 --moving-channel 0 --spacing 2,.5,0.5 --fixed-time 0 --moving-unit mm"
    command.main(words.split(), standalone_mode=False)
    assert seen["fixed"] == ImageOptions((2, 0.5, 0.5), channel=1, time=0, level=2)
    assert seen["moving"] == ImageOptions((2, 0.5, 0.5), "mm", channel=0)
    assert seen["like"] == ImageOptions()


def test_errors_speak_the_words_of_the_command_line():
    for name in ("voxel_spacing", "unit", "axes"):
        option = f"--{name.removeprefix('voxel_')}"
        for text in (f"pass {name}=, or", f"pass {name}= ({option}), or"):
            assert name_options(text) == f"pass {option}, or"
    assert name_options("pass --overwrite, --cluster slurm or min_level=") == (
        "pass --overwrite, --cluster slurm or min_level="
    )


def test_errors_name_the_option_for_their_image_alone(tmp_path):
    """An option for all images would change those that state what they must."""
    nothing, stated = str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr")
    zarr.create_array(nothing, data=np.ones((8, 8, 8), "u1"))
    zarr.create_array(stated, data=np.ones((8, 8, 8), "u1"), attributes={"spacing": 2})
    out = str(tmp_path / "out.tfm")
    transform = str(tmp_path / "t.tfm")
    write_transform(transform, AffineTransform(np.eye(4)), ("z", "y", "x"))
    calls = {
        "fixed": ("plan", nothing, stated),
        "moving": ("plan", stated, nothing),
        "like": ("export", transform, out, "--like", nothing),
    }
    for which, words in calls.items():
        error = CliRunner().invoke(commands, words).exception
        assert f"pass --{which}-spacing, one number" in str(error)


@pytest.mark.parametrize("words", ["apply t.tfm m o.zarr", "invert t.tfm o.zarr", "export t.tfm o"])
def test_options_for_an_image_that_is_not_given_are_refused(words):
    result = CliRunner().invoke(commands, [*words.split(), "--like-channel", "1"])
    assert result.exit_code == 2
    assert "--like-channel speaks of the image of --like, which is not given" in result.output


@pytest.mark.parametrize("suffix", ["nii.gz", "nrrd", "mha"])
@pytest.mark.parametrize("unit", ["millimeter", "micrometer", "nanometer"])
def test_resampled_files_lie_over_the_file_of_the_fixed_image(tmp_path, suffix, unit):
    """Slicer and ITK-SNAP take numbers as they are: those of the fixed image, if in millimeters."""
    grid = Grid((5, 6, 7), (1.0, 0.5, 0.5), (3.0, 4.0, 5.0), axes=("z", "y", "x"), unit=unit)
    image = itkstream.Image(np.ones(grid.shape, np.uint8), grid)
    out = tmp_path / f"a.{suffix}"
    write_resampled(out, image, AffineTransform(np.eye(4)), grid, WarpSettings())
    wanted = grid.in_unit("millimeter" if unit == "millimeter" else "micrometer")
    assert open_image(out).grid.unit == wanted.unit
    there = sitk.ReadImage(str(out))
    np.testing.assert_allclose(there.GetSpacing()[::-1], wanted.spacing)
    np.testing.assert_allclose(there.GetOrigin()[::-1], wanted.origin)


def test_every_resource_has_its_option():
    words = "--workers 2 --threads 1 --memory 8GB --cluster local --cores 4 --processes 2"
    words += " --min-workers 1 --max-workers 3"
    seen = {}

    @click.command()
    @with_resources
    def command(**options):
        seen["resources"] = collect_resources(options)

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


@pytest.mark.parametrize(
    ("words", "expected"), [("", "auto"), ("--engine cpu", "cpu")], ids=["file", "option"]
)
def test_an_option_comes_before_the_engine_of_the_file(words, expected):
    seen = {}

    @click.command()
    @with_resources
    def command(**options):
        seen["resources"] = collect_resources(options, "auto")

    command.main(words.split(), standalone_mode=False)
    assert seen["resources"].engine == expected


@pytest.mark.slow
def test_images_without_overlap_end_with_a_reason(command, containers, tmp_path):
    noise = np.random.default_rng(0).integers(90, 110, (64, 64, 48)).astype(np.uint16)
    write_n5(tmp_path / "noise.n5", "s0", noise, Grid(noise.shape, (1.0, 1.0, 1.3)))
    (tmp_path / "run.yaml").write_text("steps:\n- ransac-affine: {search: never}\n")
    done = command(
        "register", containers / "fix.n5/s0", tmp_path / "noise.n5/s0", "--out", tmp_path / "out",
        "--config", tmp_path / "run.yaml",
    )  # fmt: skip
    assert done.returncode == 2
    assert "no affine found" in done.stderr
    assert "Traceback" not in done.stderr


def test_says_its_version():
    assert itkstream.__version__ in run("--version").stdout
    assert itkstream.__version__ in CliRunner().invoke(commands, ["-V"]).output


@pytest.mark.parametrize("name", sorted(commands.commands))
def test_every_help_has_examples_that_parse(name):
    """Examples name options that are there; their files need not be."""
    verb = commands.commands[name]
    context = click.Context(verb, info_name=name)
    assert "Examples:" in verb.get_help(context)
    for example in verb.examples:
        words = shlex.split(example)
        assert words[:2] == ["itkstream", name]
        arguments = words[2 : words.index(">")] if ">" in words else words[2:]
        verb.make_context(name, arguments)


def test_an_output_is_said_once(tmp_path):
    for words in (["a.tfm"], ["a.tfm", "b.tfm", "--out", "c.tfm"]):
        result = CliRunner().invoke(commands, ["repair", *words])
        assert result.exit_code == 2
        assert "--out" in result.output


def test_results_are_json_wherever_it_is_asked_for(tmp_path):
    shift = np.eye(4)
    shift[0, 3] = 3
    write_transform(tmp_path / "a.tfm", AffineTransform(shift), ("x", "y", "z"))
    for words in (
        ["invert", tmp_path / "a.tfm", "-o", tmp_path / "b.tfm"],
        ["export", tmp_path / "a.tfm", "-o", tmp_path / "c.mat"],
        ["check", tmp_path / "a.tfm"],
        ["info", tmp_path / "a.tfm"],
        ["config", "--defaults"],
    ):
        result = CliRunner().invoke(commands, [*map(str, words), "--json"])
        assert result.exit_code == 0
        assert isinstance(json.loads(result.stdout), dict)
    quiet = CliRunner().invoke(commands, ["check", str(tmp_path / "a.tfm"), "--quiet"])
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_info_says_what_is_understood(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        path,
        np.arange(2 * 3 * 8 * 16, dtype=np.uint16).reshape(3, 2, 8, 16),
        metadata={
            "axes": "ZCYX",
            "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0,
            "Channel": {"Name": ["GFP", "mCherry"]},
        },
    )  # fmt: skip
    result = CliRunner().invoke(commands, ["info", str(path), "--json"])
    told = json.loads(result.stdout)["image"]
    assert (told["axes"], told["shape"], told["spacing"]) == ("zyx", [3, 8, 16], [2, 0.5, 0.5])
    assert told["channels"] == ["GFP", "mCherry"]
    picture = tmp_path / "middle.png"
    assert CliRunner().invoke(commands, ["info", str(path), "--png", str(picture)]).exit_code == 0
    assert imread(picture).shape[:2] == (8, 16)


def test_an_experiment_is_no_transform_but_names_those_inside(command, tmp_path):
    for name in ("round2", "round3"):
        (tmp_path / "rounds" / name).mkdir(parents=True)
        (tmp_path / "rounds" / name / "registration.json").write_text("{}")
    for verb in (("check", tmp_path), ("view", tmp_path), ("repair", tmp_path, "-o", "r.h5")):
        done = command(*verb, cwd=tmp_path)
        assert done.returncode == 2
        assert f"name one of {tmp_path / 'rounds/round2'}, {tmp_path}" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"fixed": {', "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"fixed": 1}', "lacks fixed, moving"),
    ],
)
def test_a_spoilt_record_is_named(command, tmp_path, text, said):
    spoilt = tmp_path / "registration.json"
    spoilt.write_text(text)
    for verb in ("report", "info"):
        done = command(verb, tmp_path)
        assert done.returncode == 2, done.stderr
        assert f"{spoilt} " in done.stderr
        assert said in done.stderr


def test_a_spoilt_record_of_an_experiment_is_named(command, tmp_path):
    (tmp_path / "experiment.json").write_text("{")
    (tmp_path / "spots.csv").write_text("x,y,z\n1,2,3\n")
    done = command("points", tmp_path, tmp_path / "spots.csv")
    assert done.returncode == 2
    assert "experiment.json is not valid JSON" in done.stderr
