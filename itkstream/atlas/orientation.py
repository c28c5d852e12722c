"""Two ways to name how a volume lies, read as one.

brainglobe (bg-space) names in small letters where the first voxel lies along each axis, slowest
axis first: "asr" is z from anterior to posterior, y from superior to inferior, x from right to
left. ITK names in capitals where x, y and z lead: of the same volume, "LIP".
"""

from __future__ import annotations

from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, Image
from itkstream.io.images.orientation import orientation_transform, stated_orientation

__all__ = ["BRAINGLOBE", "FILE_SAYS", "check_lie", "start_from_lies", "template_lie"]

BRAINGLOBE = "asr"
"""The orientation of all atlases of brainglobe."""

FILE_SAYS = "file"
"""Word for what the direction in the file says."""

# Pairs of opposite ends of a body's axes.
_ENDS = ("rl", "ap", "is")
_OPPOSITE = str.maketrans("RLAPIS", "LRPASI")


def check_lie(code: object, which: str) -> str:
    """The code, or an `InputError` that says what the orientation of an image should be."""
    if code == FILE_SAYS or (isinstance(code, str) and _names_axes(code)):
        return str(code)
    raise InputError(
        f"the orientation of the {which} is three letters for three different axes: r or l (right, "
        "left), a or p (anterior, posterior), s or i (superior, inferior). Small letters say where "
        f"the first voxel lies, slowest axis first, as brainglobe has it ({BRAINGLOBE!r}); "
        "capitals where x, y and z lead, as ITK has it ('LPS'); or 'file', where its direction "
        f"says it. Got {code!r}"
    )


def template_lie(said: object, brain: object) -> str:
    """The orientation of the template; not said, as the brain's file says, or brainglobe's."""
    default = FILE_SAYS if brain == FILE_SAYS else BRAINGLOBE
    return check_lie(default if said is None else said, "template")


def start_from_lies(
    brain: Image, template: Image, brain_lie: str, template_lie: str
) -> AffineTransform:
    """Turn the brain as the template lies, middle to middle: from brain to template points."""
    codes = (
        _itk_code(brain_lie, brain, "brain"),
        _itk_code(template_lie, template, "template"),
    )
    return orientation_transform(brain, template, *codes)


def _itk_code(lie: str, image: Image, which: str) -> str:
    """ITK's code: where x, y and z lead."""
    if lie == FILE_SAYS:
        return stated_orientation(image, which)
    # Of axes z, y, x, an axis leads to the end opposite to that where it begins.
    return lie if lie.isupper() else lie[::-1].upper().translate(_OPPOSITE)


def _names_axes(code: str) -> bool:
    """Whether three letters of one case each name another axis of a body."""
    small = code.lower()
    of_one_case = code in (small, small.upper())
    return (
        of_one_case
        and len(code) == 3
        and all(sum(letter in ends for letter in small) == 1 for ends in _ENDS)
    )
