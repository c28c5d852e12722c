"""Colours of the report's pictures, beside those of matplotlib by whose names they go."""

from __future__ import annotations

from base64 import b64decode

import imagecodecs
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_hex

from itkstream.report.pictures import Scale, colour_bar, coloured

NEAR = 14
"""So far, of 255, a map that is straight between eleven colours strays from its own at most."""


@pytest.mark.parametrize("name", ["viridis", "magma", "inferno", "RdBu_r", "autumn"])
def test_colours_are_those_of_their_name(name: str) -> None:
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
    file = b64decode(coloured(ramp, Scale(name, 0.0, 1.0)).split(",")[1])
    theirs = np.rint(255 * colormaps[name](np.arange(256)))
    assert np.abs(imagecodecs.png_decode(file)[0] - theirs).max() <= NEAR
    ends = colour_bar(Scale(name, 0.0, 1.0)).split(", ")
    assert [ends[0], ends[-1]] == [to_hex(colormaps[name](end)) for end in (0.0, 1.0)]
