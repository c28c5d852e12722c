"""Steps as values: checked when they are made, taken apart and put together, scaled to images."""

import json
import pickle

import numpy as np
import pytest
from attrs import frozen

from itkstream.align import prepare_piecewise_align
from itkstream.cli.config import Config, read_config, to_yaml
from itkstream.errors import InputError
from itkstream.geometry import AffineTransform
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS, PIPELINE_MIND
from itkstream.numerics.itk.settings import DemonsSettings, IntensitySettings
from itkstream.pipelines import plan, register
from itkstream.registration.scene import Finding
from itkstream.registration.steps import (
    DEFAULT_STEPS,
    Deformable,
    IntensityAffine,
    LocalAffines,
    RansacAffine,
    RegisterSettings,
    Step,
    checked_steps,
    step_from,
    step_name,
    step_parameters,
)
from itkstream.registration.steps.registry import KINDS

CHANGED = [
    RansacAffine(radii=((2, 6), (3, 9)), match_threshold=0.5, model="rigid", max_distance=9.0),
    LocalAffines(blocksize=64, overlap=8, radii=(2, 6), seed=3, align_threshold=2.5),
    IntensityAffine("rigid", "mutual-information", "lbfgsb", sampling="none", step=2.0),
    IntensityAffine(shrink_factors=(4, 2, 1), iterations=(9, 8, 7)),
    Deformable(),
    Deformable(blocksize=64, overlap=8, cc_radius=3, gradient_smoothing=(9.0, 0.0, 1.0, 2.0)),
    Deformable("diffeomorphic-demons", burst=3, local_normalisation=None, shrink_factors=(2, 1)),
    Deformable("demons", iterations=(3, 2, 1), step=0.5),
    Deformable(similarity="mind", cc_radius=3),
    IntensityAffine(metric="auto", local_normalisation=4),
    Deformable("bspline", control_spacing=30.0, metric="mutual-information"),
]


@pytest.mark.parametrize("step", CHANGED, ids=repr)
def test_steps_survive_files_and_processes(step):
    written = json.loads(json.dumps(step_parameters(step)))
    again = step_from(step_name(step), written)
    assert again == step
    assert hash(again) == hash(step)
    assert pickle.loads(pickle.dumps(step)) == step
    kind = {"RansacAffine": RansacAffine, "LocalAffines": LocalAffines}
    kind |= {"IntensityAffine": IntensityAffine, "Deformable": Deformable}
    assert eval(repr(step), kind) == step


def test_descriptors_have_defaults_of_their_own():
    spacing = (0.5, 0.5, 2.0)
    assert Deformable(similarity="mind").settings_for(spacing) == PIPELINE_MIND.for_voxels(spacing)
    for decided in (Deformable(), Deformable(similarity="lcc")):
        found = decided.evolve(similarity="mind")
        assert found.settings_for(spacing) == PIPELINE_MIND.for_voxels(spacing)
    given = Deformable(field_smoothing=(5.0, 0.0, 1.0, 2.0)).evolve(similarity="mind")
    assert given.settings_for(spacing).field_smoothing == ((5.0, 0.0, 1.0, 2.0),) * 3


@pytest.mark.parametrize("method", ["demons", "bspline"])
def test_methods_with_a_measure_of_their_own_take_no_similarity(method):
    with pytest.raises(InputError, match="similarity is for method 'lcc'"):
        Deformable(method, similarity="mind")


def test_names_and_defaults():
    names = [step_name(step) for step in DEFAULT_STEPS]
    assert names == ["ransac-affine", "intensity-affine", "local-affines", "deformable"]
    assert Deformable() != Deformable(blocksize=128)
    assert Deformable() != Deformable("demons")


def test_what_is_left_out_suits_the_voxels_and_what_is_given_does_not():
    spacing = (0.5, 0.5, 2.0)
    assert Deformable().settings_for(spacing) == PIPELINE_DEFAULTS.for_voxels(spacing)
    assert IntensityAffine().settings_for(spacing) == IntensitySettings().scaled(0.5)
    given = IntensityAffine(step=3.0, sampling_fraction=0.5).settings_for(spacing)
    assert given.step == 3.0
    assert given.sampling_fraction == 0.5
    assert given.smooth_sigmas == IntensitySettings().scaled(0.5).smooth_sigmas
    fixed = Deformable("demons", field_smoothing=(4.0, 0.0, 1.0, 2.0)).settings_for(spacing)
    spline = Deformable("bspline", control_spacing=30.0, shrink_factors=(8, 4, 2))
    assert spline.settings_for(spacing).control_spacing == (30.0,) * 3
    assert Deformable("bspline").settings_for(spacing).control_spacing == (12.0, 12.0)
    defaults = DemonsSettings("demons")
    assert fixed.field_smoothing == ((4.0, 0.0, 1.0, 2.0),) * 3
    assert fixed.gradient_smoothing == defaults.scaled(0.5).gradient_smoothing


def test_other_levels_keep_what_belongs_to_the_fine_ones():
    two = Deformable(shrink_factors=(2, 1)).settings
    assert two.iterations == PIPELINE_DEFAULTS.iterations[-2:]
    assert two.field_smoothing == PIPELINE_DEFAULTS.field_smoothing[-2:]
    four = Deformable(shrink_factors=(8, 4, 2, 1)).settings
    assert four.iterations == (PIPELINE_DEFAULTS.iterations[0], *PIPELINE_DEFAULTS.iterations)


def test_key_points_are_scaled_to_the_image():
    settings = RansacAffine(cc_radius=6).settings_for((0.5, 0.5, 1.0), (2.0, 6.0))
    assert settings.key_points.min_radius_um == 1.0
    assert settings.ransac.threshold_um == 0.75
    assert settings.window.half_width_um == (3.0, 3.0, 6.0)
    given = RansacAffine(align_threshold=4.0, max_ambiguity=0.9, max_distance=7.0, seed=5)
    settings = given.settings_for((0.5, 0.5, 1.0), (2.0, 6.0))
    assert settings.ransac.threshold_um == 4.0
    assert settings.ransac.seed == 5
    assert (settings.matching.max_distance_um, settings.matching.max_ambiguity) == (7.0, 0.9)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *((kind, name, value) for kind in (RansacAffine, LocalAffines) for name, value in (
            ("match_threshold", 1.5),
            ("match_threshold", "high"),
            ("cc_radius", 0),
            ("nspots", 0),
            ("nspots", 2.5),
            ("num_sigma_max", 0),
            ("align_threshold", 0),
            ("max_distance", -1),
            ("max_ambiguity", 0),
            ("model", "bspline"),
            ("seed", -1),
        )),
        (RansacAffine, "radii", ()),
        (RansacAffine, "radii", (2, 6)),
        (RansacAffine, "radii", ((6, 2),)),
        (LocalAffines, "radii", (0, 2)),
        (LocalAffines, "blocksize", 5),
        (LocalAffines, "overlap", 100),
        (Deformable, "blocksize", 63),
        (Deformable, "blocksize", "big"),
        (Deformable, "overlap", -1),
        (Deformable, "method", "optical-flow"),
        (Deformable, "similarity", "nmi"),
        (Deformable, "cc_radius", 0),
        (Deformable, "iterations", (1, 2)),
        (Deformable, "shrink_factors", 2),
        (IntensityAffine, "metric", "ssd"),
        (IntensityAffine, "step", -1),
        (IntensityAffine, "shrink_factors", ()),
    ],
)  # fmt: skip
def test_every_bad_parameter_is_named(kind, name, value):
    with pytest.raises(InputError, match=name):
        kind(**{name: value})


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (step, name)
        for step in (
            RansacAffine(),
            LocalAffines(),
            IntensityAffine(),
            *(Deformable(method) for method in ("lcc", "symmetric-demons", "bspline")),
        )
        for name in step_parameters(step)
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_no_parameter_takes_anything(step, name):
    wrong = step_parameters(step) | {name: "nonsense"}
    with pytest.raises(InputError, match=name):
        step_from(step_name(step), wrong)


@pytest.mark.parametrize(
    ("name", "parameters", "hint"),
    [
        ("ransac-afine", {}, "did you mean 'ransac-affine'"),
        ("ransac-affine", {"math_threshold": 1}, "did you mean 'match_threshold'"),
        ("local-affines", {"block_size": 64}, "did you mean 'blocksize'"),
        ("intensity-affine", {"metrics": "x"}, "did you mean 'metric'"),
        ("deformable", {"methd": "lcc"}, "did you mean 'method'"),
        ("deformable", {"method": "lcc", "burst": 3}, r"Deformable\(method='lcc'\) 'burst'; known"),
        ("deformable", {"method": "demon"}, "did you mean 'demons'"),
    ],
)
def test_unknown_names_come_with_the_nearest_known_one(name, parameters, hint):
    with pytest.raises(InputError, match=hint):
        step_from(name, parameters)


@pytest.mark.parametrize("steps", [RansacAffine(), [RansacAffine], ["deformable"], [None]])
def test_what_is_no_list_of_steps_is_refused(steps):
    with pytest.raises(InputError, match="step"):
        checked_steps(steps)


@frozen
class Shift(Step):
    """A fifth kind: it shifts the moving image along the first axis."""

    name, title = "shift", "shift"
    by: float = 0.0

    def find(self, scene, state, place):
        matrix = np.eye(scene.fixed.ndim + 1)
        matrix[0, -1] = self.by
        return Finding(AffineTransform(matrix), required=True)


def test_a_fifth_kind_is_one_module_and_one_line(monkeypatch, tmp_path, pair):
    """It runs, is noted, is written to files and read again, and is planned."""
    monkeypatch.setitem(KINDS, Shift.name, Shift)
    start = np.array(pair.truth.matrix)
    steps, settings = [Shift(0.5)], RegisterSettings(blocksize=32)
    config = Config(tuple(steps), settings)
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config))
    assert read_config(file) == config
    with pytest.raises(InputError, match=r"unknown parameter of shift 'bye'; did you mean 'by'"):
        step_from("shift", {"bye": 1.0})
    assert [price.name for price in plan(pair.fixed, pair.moving, steps).prices][1] == "shift"
    for _ in range(2):
        done = register(
            pair.fixed, pair.moving, tmp_path / "out", steps, settings, initial_transform=start
        )
        expected = AffineTransform(start).apply((20.5, 20.0, 20.0))
        np.testing.assert_allclose(done.transform.apply((20.0,) * 3), expected, atol=1e-4)
    assert done.facts["settings"]["steps"] == [{"shift": {"by": 0.5}}]
    with pytest.raises(InputError, match="a Shift cannot be done block by block"):
        prepare_piecewise_align(pair.fixed, pair.moving, None, None, steps, (32, 32, 32))


def test_a_step_evolves_as_it_is_made():
    assert Deformable("demons", burst=3).evolve(blocksize=64) == Deformable(
        "demons", blocksize=64, burst=3
    )
    assert IntensityAffine(step=2.0).evolve(step=None) == IntensityAffine()
    with pytest.raises(InputError, match="seed must be a whole number"):
        RansacAffine().evolve(seed=-1)
