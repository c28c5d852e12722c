"""Advice on a pair, before it is registered or after that failed."""

from __future__ import annotations

import os
from typing import Any

from itkstream.blocks.inputs import as_pair, check_start
from itkstream.blocks.masks import Mask
from itkstream.geometry import Image, Transform
from itkstream.io.images.units import itk_unit
from itkstream.progress.shown import Told, telling
from itkstream.registration.advice.advice import Advice, advise_pair
from itkstream.registration.advice.channels import choose_pair
from itkstream.registration.request import open_mask, plan_request, read_initial
from itkstream.registration.settings import RegisterSettings
from itkstream.registration.steps import DEFAULT_STEPS
from itkstream.workers import Resources

__all__ = ["Advice", "advise"]


def advise(
    fixed: str | os.PathLike[str] | Image,
    moving: str | os.PathLike[str] | Image,
    settings: RegisterSettings | None = None,
    *,
    initial_transform: Transform | Any | None = None,
    fixed_mask: Mask | str | os.PathLike[str] | None = None,
    moving_mask: Mask | str | os.PathLike[str] | None = None,
    resources: Resources | None = None,
    reporter: Told = "auto",
) -> Advice:
    """Say by which parameters a pair matches best, or why it does not match and what to change.

    An affine is sought as `itkstream.register` does it, on a level of at most 2 million voxels. Is
    it borne out, radii of blobs, contexts and the threshold are chosen by the matches that agree,
    on a sample of the level that `register` uses, and blocks, overlap and stiffness by what is left
    after it. Is it not, the advice names the stage at which key points were lost, and what mends
    the pair: an inverted contrast and other voxel spacings are tried, then turned and mirrored
    starts. It takes some ten seconds, or a minute where all is tried. Nothing is written. Of an
    image whose file holds no coarse level, all voxels are read once.

    Parameters
    ----------
    fixed, moving : path or Image
        As in `itkstream.register`: where a path has several channels and nothing says which is
        meant, each is matched with each of the other image on levels of a million voxels, and the
        best pair is taken if it is borne out.
    settings : RegisterSettings, optional
        `coarse_voxels` counts.
    initial_transform : Transform, matrix or path, optional
        From fixed to moving points, as in `itkstream.register`: the moving image is matched as it
        lies there, and no other start is sought.
    fixed_mask, moving_mask : Mask or path, optional
        As in `itkstream.register`.
    resources : Resources, optional
        As in `itkstream.pipelines.plan`: where `memory` is given, blocks are chosen to fit it.
    reporter : Reporter, 'auto' or None
        Gets steps and results. By default a progress bar in a notebook or on a terminal,
        and plain lines elsewhere; None for silence. The log is written in all three cases.

    Returns
    -------
    Advice
        Shown, it is the advice in words.

    Raises
    ------
    InputError
        For images, masks or a start that cannot be used, and where matches single no channel out
        of several; then all are listed with what was seen of them.
    RegistrationError
        Where the images do not overlap through the start.
    PlanError
        Where nothing fits `memory`.

    Examples
    --------
    >>> advice = itkstream.advise(fixed, moving)
    >>> advice.matches
    True
    """
    with telling(reporter) as told:
        chosen = choose_pair(fixed, moving, told)
        pair = as_pair(*chosen.images, None, None)
        initial = read_initial(initial_transform, pair[0], itk_unit(chosen.images[0].grid))
        check_start(*pair, initial, anywhere=initial is None)
        masks = open_mask(fixed_mask, pair[0]), open_mask(moving_mask, pair[1])
        pair = as_pair(*pair, None, None, masks=masks)
        plan = plan_request(
            pair, DEFAULT_STEPS, settings or RegisterSettings(), resources or Resources()
        )
        return advise_pair(pair, plan, told, initial).after(chosen.settings)
