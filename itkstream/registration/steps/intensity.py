"""A refinement of an affine by intensities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from attrs import frozen
from dask.delayed import Delayed

from itkstream.estimate.affines import IntensitySearch
from itkstream.geometry import AffineTransform, Transform
from itkstream.io.storage.locations import Location
from itkstream.numerics.itk.intensity import intensity_block
from itkstream.numerics.itk.settings import IntensitySettings, Metric, Model, Optimizer
from itkstream.numerics.sampling.mapping import affine_part
from itkstream.registration.channels import weigh_channels
from itkstream.registration.scene import (
    BlockScene,
    Finding,
    Nothing,
    Scene,
    Start,
    State,
    judged_by_descriptors,
)
from itkstream.registration.steps.prices import Pair, StepPrice
from itkstream.registration.steps.step import TunedStep, prepare_refined, tuned

__all__ = ["IntensityAffine"]

Compared: TypeAlias = Literal["auto"] | Metric

# Bytes per voxel of the coarse levels that are compared.
_BYTES = 24.0
# Seconds per voxel of the coarse fixed level; see `RATES`.
_SECONDS = 7e-7


@frozen(init=False, repr=False)
class IntensityAffine(TunedStep):
    """A refinement of an affine by comparing intensities, by SimpleITK's registration methods.

    Parameters
    ----------
    model : {'translation', 'rigid', 'similarity', 'affine'}
        What may be added to the transform found so far.
    metric : {'correlation', 'mutual-information', 'mean-squares', \
'neighbourhood-correlation', 'auto'}
        How alike two images are. 'auto', in `itkstream.register`: 'correlation', unless evidence on
        a coarse level says that contrasts differ (as `Deformable` finds it); then
        ``IntensityAffine(model, 'mutual-information', optimizer)``, kept where self-similarity
        descriptors grow more alike. Block by block, in `itkstream.align`, 'auto' is 'correlation'.
    optimizer : {'gradient-descent', 'lbfgsb', 'powell', 'exhaustive'}
        How the best transform is searched.
    **parameters
        Those of `itkstream.affine.IntensitySettings`: sampling, sampling_fraction, seed,
        shrink_factors, smooth_sigmas, iterations, step, search_steps, bins, radius. Lengths
        in µm; None or left out: scaled to the voxels.

    Raises
    ------
    InputError
        For an unknown parameter or a value out of range; the message names it.

    Examples
    --------
    >>> itkstream.IntensityAffine("rigid", metric="mutual-information")
    IntensityAffine(metric='mutual-information', model='rigid')
    """

    name: ClassVar[str] = "intensity-affine"
    title: ClassVar[str] = "intensity affine"

    settings: IntensitySettings
    given_lengths: frozenset[str]
    metric: Compared

    def __init__(
        self,
        model: Model = "affine",
        metric: Compared = "correlation",
        optimizer: Optimizer = "gradient-descent",
        **parameters: Any,
    ) -> None:
        first = "correlation" if metric == "auto" else metric
        named = {"model": model, "metric": first, "optimizer": optimizer}
        settings, lengths = tuned(
            IntensitySettings(), {**named, **parameters}, "an IntensityAffine"
        )
        self.__attrs_init__(settings=settings, given_lengths=lengths, metric=metric)

    def parameters(self) -> dict[str, Any]:
        return {**super().parameters(), "metric": self.metric}

    def settings_for(self, spacing: Sequence[float]) -> IntensitySettings:
        """Scale the settings to an image.

        Parameters
        ----------
        spacing : sequence of float
            Of the fixed image, in µm.

        Returns
        -------
        IntensitySettings
            With all lengths in µm.

        Examples
        --------
        >>> itkstream.IntensityAffine(iterations=(50, 50)).settings_for(fixed.spacing).iterations
        (50, 50)
        """
        return self._scaled(self.settings.for_voxels(spacing))

    def find(self, scene: Scene, state: State, place: Callable[[], Location]) -> Finding | Nothing:
        known = scene.known(state.transform)
        scene, channels = weigh_channels(scene, known)
        found = self._find(scene, state, known)
        found.facts.update(channels)
        return found

    def _find(self, scene: Scene, state: State, known: Transform) -> Finding | Nothing:
        """Find the affine by the leading channel, with the metric that is given or suits it."""
        if self.metric != "auto":
            return self._compare(scene, state)
        evidence = scene.find_similarity(scene.aligned(known).read())
        if evidence.similarity == "lcc":
            found = self._compare(scene, state)
        else:
            settings = self.settings
            inform = IntensityAffine(settings.model, "mutual-information", settings.optimizer)
            found = judged_by_descriptors(scene, state, inform._compare(scene, state))
        found.facts.update(evidence.facts)
        return found

    def _compare(self, scene: Scene, state: State) -> Finding | Nothing:
        """Find the affine by the metric of the settings."""
        fixed, moving = scene.coarse
        start, known = np.eye(fixed.ndim + 1), state.transform
        if isinstance(known, AffineTransform):
            start = known.matrix
        elif known is not None:
            moving = scene.aligned(known)
        estimate = intensity_block(fixed, moving, start, self.settings_for(fixed.spacing))
        facts: dict[str, Any] = {"metric_before": estimate.before, "metric_after": estimate.after}
        if not estimate:
            return Nothing(estimate.reason, facts)
        whole = known is None or isinstance(known, AffineTransform)
        found = Finding(AffineTransform(estimate.matrix), facts, whole=whole)
        facts["matrix"] = affine_part(found.transform(state)).matrix.tolist()
        return found

    def prepare_transform(self, scene: BlockScene, start: Start) -> Delayed:
        return prepare_refined(
            scene, start, IntensitySearch(self.settings_for(scene.fixed.spacing))
        )

    def price(self, pair: Pair) -> StepPrice:
        once = pair.held + sum(grid.size for grid in pair.coarse) * _BYTES
        return StepPrice(
            self.name, once=max(once, pair.judged), seconds=_SECONDS * pair.coarse[0].size
        )
