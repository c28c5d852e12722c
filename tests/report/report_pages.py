"""What is registered for the tests of reports, and their pages, taken apart."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

import imagecodecs
import numpy as np

from itkstream.registration.steps import Deformable, RansacAffine, RegisterSettings

__all__ = ["HOSTILE", "SETTINGS", "STEPS", "Page", "decoded"]

HOSTILE = "<img src=x onerror=alert(1)>&'\".n5"
STEPS = (
    RansacAffine(radii=((2.0, 6.0),), match_threshold=0.6, cc_radius=8),
    Deformable(iterations=(5, 5, 2), stiffness=1.0),
)
SETTINGS = RegisterSettings(blocksize=64, error_map=False)


class Page(HTMLParser):
    """A page taken apart: tags with their attributes, and the text that is read."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._silent = False
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._silent = tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._silent else data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def decoded(uri: str | None) -> np.ndarray:
    assert uri is not None
    return np.asarray(imagecodecs.imread(base64.b64decode(uri.partition(",")[2])))
