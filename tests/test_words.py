"""Summaries of docstrings are phrases of their own: nouns, or what a function does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import itkstream

ROOMS = sorted(
    place.name
    for place in Path(itkstream.__file__).parent.iterdir()
    if place.suffix == ".py" or (place / "__init__.py").is_file()
)

# A genitive without its noun ("Of the run."), a question ("What is known."), a single word.
_NO_SUMMARY = re.compile(r"(Of|What|How|Which|Where|Who) |\S+$")

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _summaries(file: Path) -> Iterator[tuple[str, str]]:
    """Each docstring's first line, where it stands, and those of constants."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, Documented) and (text := ast.get_docstring(node)):
            yield getattr(node, "name", file.name), text.splitlines()[0]
        for before, after in zip(_body(node), _body(node)[1:], strict=False):
            constant = isinstance(before, (ast.Assign, ast.AnnAssign))
            if constant and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                yield ast.unparse(before).split(" =")[0], str(after.value.value).splitlines()[0]


def _body(node: ast.AST) -> list[ast.AST]:
    body = getattr(node, "body", [])
    return body if isinstance(body, list) else []


def _files(room: str) -> list[Path]:
    place = Path(itkstream.__file__).parent / room
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


@pytest.mark.parametrize("room", ROOMS)
def test_summaries_are_phrases(room: str) -> None:
    found = [
        f"{file.name}: {name}: {text}"
        for file in _files(room)
        for name, text in _summaries(file)
        if _NO_SUMMARY.match(text.rstrip("."))
    ]
    assert not found
