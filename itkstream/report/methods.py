"""Methods of a registration in the words of a paper, and the papers that they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from itkstream.registration.steps.registry import KINDS

__all__ = ["Citation", "Methods", "methods_of"]


@dataclass(frozen=True)
class Citation:
    """A paper."""

    text: str
    doi: str


@dataclass(frozen=True)
class Methods:
    """A paragraph to paste into a paper, with numbers of citations in brackets, and these."""

    paragraph: str
    citations: tuple[Citation, ...]


_BLOBS = Citation(
    "T. Lindeberg, Feature detection with automatic scale selection, International Journal of "
    "Computer Vision 30 (1998) 79-116",
    "10.1023/A:1008045108935",
)
_RANSAC = Citation(
    "M. A. Fischler and R. C. Bolles, Random sample consensus, Communications of the ACM 24 (1981) "
    "381-395",
    "10.1145/358669.358692",
)
_MSAC = Citation(
    "P. H. S. Torr and A. Zisserman, MLESAC: a new robust estimator with application to estimating "
    "image geometry, Computer Vision and Image Understanding 78 (2000) 138-156",
    "10.1006/cviu.1999.0832",
)
_MASKED = Citation(
    "D. Padfield, Masked object registration in the Fourier domain, IEEE Transactions on Image "
    "Processing 21 (2012) 2706-2718",
    "10.1109/TIP.2011.2181402",
)
_MATTES = Citation(
    "D. Mattes et al., PET-CT image registration in the chest using free-form deformations, IEEE "
    "Transactions on Medical Imaging 22 (2003) 120-128",
    "10.1109/TMI.2003.809072",
)
_ITK = Citation(
    "B. B. Avants et al., The Insight ToolKit image registration framework, Frontiers in "
    "Neuroinformatics 8 (2014) 44",
    "10.3389/fninf.2014.00044",
)
_LCC = Citation(
    "B. B. Avants et al., Symmetric diffeomorphic image registration with cross-correlation, "
    "Medical Image Analysis 12 (2008) 26-41",
    "10.1016/j.media.2007.06.004",
)
_MIND = Citation(
    "M. P. Heinrich et al., MIND: modality independent neighbourhood descriptor for multi-modal "
    "deformable registration, Medical Image Analysis 16 (2012) 1423-1435",
    "10.1016/j.media.2012.05.008",
)
_DEMONS = Citation(
    "T. Vercauteren et al., Diffeomorphic demons, NeuroImage 45 (2009) S61-S72",
    "10.1016/j.neuroimage.2008.10.040",
)
_BSPLINE = Citation(
    "D. Rueckert et al., Nonrigid registration using free-form deformations, IEEE Transactions on "
    "Medical Imaging 18 (1999) 712-721",
    "10.1109/42.796284",
)
_HELD_OUT = Citation(
    "M. Stone, Cross-validatory choice and assessment of statistical predictions, Journal of the "
    "Royal Statistical Society B 36 (1974) 111-147",
    "10.1111/j.2517-6161.1974.tb00994.x",
)
_NGFF = Citation(
    "J. Moore et al., OME-NGFF: a next-generation file format for expanding bioimaging data-access "
    "strategies, Nature Methods 18 (2021) 1496-1498",
    "10.1038/s41592-021-01326-w",
)


class _Cited:
    """The citations of a paragraph, numbered as they come."""

    def __init__(self) -> None:
        self.known: list[Citation] = []

    def __call__(self, *citations: Citation) -> str:
        """Cite papers: their numbers in brackets."""
        self.known += [c for c in citations if c not in self.known]
        return f"[{', '.join(str(self.known.index(c) + 1) for c in citations)}]"


def methods_of(facts: dict[str, Any], numbers: dict[str, Any]) -> Methods:
    """Say in a paragraph what was done, from what registration.json says and the page's numbers."""
    cite = _Cited()
    sentences = [
        f"The moving image was registered to the fixed one with itkstream {facts['itkstream']}.",
        *(_SENTENCES[name](told, cite) for name, told in _kept(facts)),
        "The moving image was resampled on the voxels of the fixed one by linear interpolation.",
        _quality(numbers),
        f"Images and transforms are stored as OME-Zarr {cite(_NGFF)}.",
    ]
    return Methods(" ".join(filter(None, sentences)), tuple(cite.known))


def _kept(facts: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The steps whose findings were kept: their names, and what they were set to and found."""
    found = iter(facts["steps"])
    for entry in facts["settings"]["steps"]:
        ((name, parameters),) = entry.items()
        title = KINDS[name].title if name in KINDS else name
        told: dict[str, Any] = next((step for step in found if step["name"] == title), {})
        if name in _SENTENCES and "dropped" not in told:
            yield name, {**parameters, **told}


def _initial(told: dict[str, Any], cite: _Cited) -> str:
    return (
        "A start was searched over rotations, by masked correlation in the Fourier domain "
        f"{cite(_MASKED)}."
    )


def _ransac(told: dict[str, Any], cite: _Cited) -> str:
    # What a search found, not the parameter of its name.
    searched = f"{_initial(told, cite)} " if isinstance(told.get("search"), dict) else ""
    agreed = ""
    if "inliers" in told:
        agreed = (
            f"; {told['inliers']} of {told['matches']} matches agreed, with a median residual of "
            f"{told['median_residual']:.2f} µm"
        )
    where = ", outside of empty ground" if told.get("empty_ground", {}).get("left_out") else ""
    chosen = told.get("chosen", {})
    how = ""
    if "match_threshold" in chosen:
        how = f" (at least {chosen['match_threshold']:g}, radius {chosen['context_radius']} voxels)"
    return (
        f"{searched}An affine transform was fitted to key points, bright blobs of any scale "
        f"{cite(_BLOBS)}{where}, "
        f"matched by the correlation of their neighbourhoods{how}, by random sample "
        f"consensus {cite(_RANSAC, _MSAC)}"
        f"{agreed}."
    )


def _intensity(told: dict[str, Any], cite: _Cited) -> str:
    shared = "information" in str(told.get("metric")) or told.get("similarity") == "mind"
    by = f"mutual information {cite(_MATTES, _ITK)}" if shared else f"intensities {cite(_ITK)}"
    return f"The affine was refined by {by}."


def _local(told: dict[str, Any], cite: _Cited) -> str:
    return (
        "Affines of blocks were fitted to key points in the same way, and blended where blocks "
        "overlap."
    )


def _deformable(told: dict[str, Any], cite: _Cited) -> str:
    if told["method"] == "bspline":
        by = f"by B-splines {cite(_BSPLINE)}"
    elif told["method"] != "lcc":
        by = f"by {told['method'].replace('-', ' ')} {cite(_DEMONS)}"
    elif told.get("similarity") == "mind":
        by = f"by Gauss-Newton descent on self-similarity descriptors {cite(_MIND)}"
    else:
        by = f"by Gauss-Newton descent on squared local correlation {cite(_LCC)}"
    judged = ""
    if "hidden_correlation" in told:
        by_voxels = f"by voxels that the descent did not see {cite(_HELD_OUT)}."
        judged = f" It was judged {by_voxels}"
        # Where several were tried, the step says which it took; else it is what was given.
        if len(told["hidden_correlation"]) > 1:
            stiff = f"{told['stiffness']:g} times the default"
            judged = f" How stiff it is ({stiff}) was chosen {by_voxels}"
    pull = told.get("landmark_evidence", {"left_out": "none"})
    if not pull["left_out"]:
        judged += " Landmarks were soft constraints"
        judged += ", judged by thirds held out in turn." if pull["deviations"] is not None else "."
    shrinks = told.get("shrink_factors")
    levels = f", shrunk by {', '.join(map(str, shrinks))}" if isinstance(shrinks, list) else ""
    return (
        f"A displacement field was found {by}, from coarse to fine{levels}, in blocks of "
        f"{told['blocksize']} voxels.{judged}"
    )


def _quality(numbers: dict[str, Any]) -> str:
    values = [c["value"] for c in numbers["local_correlation"] if not c["left_out"]]
    values = [value for value in values if value is not None]
    said = ""
    if len(values) > 1:
        said = (
            "The mean squared local correlation within the tissue (windows of 25 voxels) rose from "
            f"{values[0]:.2f} to {values[-1]:.2f}."
        )
    sound = numbers["certificate"]
    if sound and not sound["folded_voxels"]:
        least = f"{sound['least_jacobian']:.2f}"
        said += f" The transform has no folds (least Jacobian determinant {least})."
    return said.strip()


_SENTENCES: dict[str, Callable[[dict[str, Any], _Cited], str]] = {
    "initial-search": _initial,
    "ransac-affine": _ransac,
    "intensity-affine": _intensity,
    "local-affines": _local,
    "deformable": _deformable,
}
