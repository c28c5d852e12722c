"""Progress as a Python script, a terminal and a notebook show it."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
from itkstream.progress.reporters import Part
from itkstream.progress.shown import telling
with telling("auto") as told:
    told.expect([Part("read", 1.0), Part("affine", 4.0)])
    told.step("read")
    for done in range(200):
        told.blocks(done + 1, 200)
    told.note("a result [0, 1]")
    told.step("affine")
"""


def test_a_script_without_a_terminal_gets_lines():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert not run.stdout
    lines = [line[10:] for line in run.stderr.splitlines()]
    assert lines[0].startswith("1 of 2  read, about ")
    assert lines[1] == "  a result [0, 1]"
    assert lines[2].startswith("2 of 2  affine, about ")
    assert len(lines) == 3


def test_nothing_is_shown_where_none_is_asked_for():
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace('"auto"', "None")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not run.stdout + run.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_a_terminal_gets_a_line_for_each_step():
    import pty

    here, there = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=there, stdout=there) as run:
        os.close(there)
        shown = b""
        while True:
            try:
                shown += os.read(here, 4096)
            except OSError:  # the other end is closed
                break
    os.close(here)
    assert run.returncode == 0
    text = shown.decode()
    assert "1 of 2  read" in text
    assert "a result [0, 1]" in text
    assert text.count("✓") == 2


@pytest.mark.slow
def test_a_notebook_gets_one_output():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SCRIPT)])
    nbclient.NotebookClient(book, timeout=120, kernel_name="python3").execute()
    (output,) = book.cells[0].outputs
    html = output["data"]["text/html"]
    assert "1 of 2  read" in html
    assert "a result [0, 1]" in html
    assert "<progress" not in html
