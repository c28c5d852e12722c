"""The installed package is found whatever the current folder holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Of an image opened by name and of the plug-in that napari finds through the package.
_PROGRAM = """
import itkstream
from importlib.resources import files
assert itkstream.open_image
assert files("itkstream").joinpath("napari.yaml").is_file()
"""


def test_a_folder_of_the_package_s_name_does_not_hide_it(tmp_path: Path) -> None:
    """As in the folder above a clone, which holds a folder `itkstream` that is no package."""
    (tmp_path / "itkstream").mkdir()
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
