from . import affine as affine
from . import align as align
from . import cluster as cluster
from . import deform as deform
from . import errors as errors
from . import features as features
from . import geometry as geometry
from . import io as io
from . import overlay as overlay
from . import phantoms as phantoms
from . import pipelines as pipelines
from . import transform as transform
from . import workers as workers
from .advice import Advice, advise
from .apply.bundles import Bundle, coarsened, export_ants, export_slicer
from .apply.certificate import Certificate, certify, check_transform
from .apply.folds import repair_transform
from .apply.inverse import InverseTransform
from .apply.products import Series, write_inverse, write_resampled
from .atlas.regions import Region
from .atlas.register import AtlasRegistration, register_atlas
from .blocks.masks import Mask
from .cluster import execute
from .experiment.cells import SpotCounts, count_spots
from .experiment.register import Experiment, RegisteredRound, register_rounds
from .experiment.rounds.manifest import Round
from .experiment.spots import MovedRound, MovedSpots, move_spots
from .geometry import (
    AffineTransform,
    BSplineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
    Landmarks,
    LandmarkSpline,
    PiecewiseAffine,
)
from .io import ImageOptions, open_container, open_image
from .io.images.orientation import orientation_code, orientation_transform
from .io.images.plain.in_memory import as_image
from .io.landmarks.files import read_landmarks, write_landmarks
from .io.transforms.files import read_transform, write_transform
from .io.transforms.itk.transform_files import read_itk_transform
from .judge.verdict import Verdict
from .numerics.sampling.warping import WarpSettings
from .pipelines import Plan, plan, register
from .registration.steps import (
    Deformable,
    InitialSearch,
    IntensityAffine,
    LocalAffines,
    RansacAffine,
    RegisterSettings,
)
from .report.write import write_report
from .result import Registration
from .serving.serve import ImageServer, serve
from .viewing import view
from .workers import Resources

__version__: str

__all__ = [
    "Advice",
    "AffineTransform",
    "AtlasRegistration",
    "BSplineTransform",
    "Bundle",
    "Certificate",
    "CompositeTransform",
    "Deformable",
    "DisplacementField",
    "Experiment",
    "Grid",
    "Image",
    "ImageOptions",
    "ImageServer",
    "InitialSearch",
    "IntensityAffine",
    "InverseTransform",
    "LandmarkSpline",
    "Landmarks",
    "LocalAffines",
    "Mask",
    "MovedRound",
    "MovedSpots",
    "PiecewiseAffine",
    "Plan",
    "RansacAffine",
    "Region",
    "RegisterSettings",
    "RegisteredRound",
    "Registration",
    "Resources",
    "Round",
    "Series",
    "SpotCounts",
    "Verdict",
    "WarpSettings",
    "advise",
    "affine",
    "align",
    "as_image",
    "certify",
    "check_transform",
    "cluster",
    "coarsened",
    "count_spots",
    "deform",
    "errors",
    "execute",
    "export_ants",
    "export_slicer",
    "features",
    "geometry",
    "io",
    "move_spots",
    "open_container",
    "open_image",
    "orientation_code",
    "orientation_transform",
    "overlay",
    "phantoms",
    "pipelines",
    "plan",
    "read_itk_transform",
    "read_landmarks",
    "read_transform",
    "register",
    "register_atlas",
    "register_rounds",
    "repair_transform",
    "serve",
    "transform",
    "view",
    "workers",
    "write_inverse",
    "write_landmarks",
    "write_report",
    "write_resampled",
    "write_transform",
]
