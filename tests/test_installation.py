"""An installation brings what the package needs, and nothing else."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import itkstream

ROOT = Path(__file__).parents[1]
MODULES = {"itk-core": "itk", "pyyaml": "yaml", "scikit-image": "skimage"}
# bokeh is dask's dashboard, imagecodecs the codecs of tifffile: these import them.
USED_BY_OTHERS = {"bokeh", "imagecodecs"}


def test_every_dependency_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w.-]+", line)[0] for line in project["dependencies"]} - USED_BY_OTHERS
    sources = "\n".join(file.read_text() for file in (ROOT / "itkstream").rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", sources, re.MULTILINE))
    # The batch systems' classes are imported by name, when one is asked for.
    imported |= set(re.findall(r'import_module\("(\w+)', sources))
    modules = {MODULES.get(name, name.replace("-", "_")) for name in names}
    assert modules <= imported, modules - imported


def test_every_file_of_the_package_is_installed():
    # An editable install, as that of the tests is, has them all: .ci/dependencies has a wheel.
    installed, source = _files(Path(itkstream.__file__).parent), _files(ROOT / "itkstream")
    assert source <= installed, source - installed


def _files(folder: Path) -> set[Path]:
    found = (file for file in folder.rglob("*") if "__pycache__" not in file.parts)
    return {file.relative_to(folder) for file in found if file.is_file()}
