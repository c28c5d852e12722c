"""What the documentation and the error texts name can be reached by public names alone."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate
from types import ModuleType

import pytest
from test_docstrings import public_names

import itkstream

_ROOT = Path(itkstream.__file__).parents[1]
_NAMED = re.compile(r"(?<![\w./~-])itkstream((?:\.[A-Za-z_]\w*)+)")
_IMPORTED = re.compile(r"^\s*from itkstream\.([\w.]+) import ([\w, ]+)", re.MULTILINE)


def _is_public(path: str) -> bool:
    """Whether every module on the way lists the name after it."""
    thing: object = itkstream
    for name in path.split("."):
        if isinstance(thing, ModuleType) and name not in (*thing.__all__, "__version__"):
            return False
        if not hasattr(thing, name):
            return False
        thing = getattr(thing, name)
    return True


def _named_in(text: str) -> Iterator[str]:
    yield from (found.lstrip(".") for found in _NAMED.findall(text))
    for module, names in _IMPORTED.findall(text):
        yield from (f"{module}.{name.strip()}" for name in names.split(",") if name.strip())


def _texts() -> Iterator[tuple[str, str]]:
    yield "README.md", (_ROOT / "README.md").read_text()
    yield "CHANGELOG.md", (_ROOT / "CHANGELOG.md").read_text().split("\n## ")[1]
    for notebook in sorted((_ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(notebook.read_text())["cells"]
        yield notebook.name, "\n".join("".join(cell["source"]) for cell in cells)
    yield "itkstream", itkstream.__doc__ or ""
    for name in sorted(set(public_names())):
        yield name, inspect.getdoc(locate(name)) or ""
    for file in sorted((_ROOT / "itkstream").rglob("*.py")):
        yield str(file.relative_to(_ROOT)), "\n".join(_messages(ast.parse(file.read_text())))


def _messages(tree: ast.Module) -> Iterator[str]:
    """Sentences in the code that are no docstrings: what errors, logs and help texts say."""
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if text and id(node) not in statements and " " in node.value:
            yield node.value


@pytest.mark.parametrize(("where", "text"), [pytest.param(*t, id=t[0]) for t in _texts() if t[1]])
def test_only_public_names_are_named(where: str, text: str) -> None:
    assert not [name for name in _named_in(text) if not _is_public(name)], where


@pytest.mark.parametrize(
    "path", ["apply.certificate.certify", "transform.np", "io.images", "nothing"]
)
def test_an_internal_path_is_told_apart(path: str) -> None:
    assert not _is_public(path)
    assert _is_public("certify")
    assert _is_public("workers.Resources.resolved")


def test_dir_shows_public_names_only() -> None:
    modules = [getattr(itkstream, name) for name in itkstream.__all__]
    for module in (itkstream, *filter(inspect.ismodule, modules)):
        assert set(dir(module)) <= {*module.__all__, "__version__"}, module.__name__
