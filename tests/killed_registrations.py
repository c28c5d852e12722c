"""A program that registers, is killed whenever a step more is noted, and goes on, until it is done.

``python killed_registrations.py FOLDER WORDS...`` writes FOLDER/whole in one go and FOLDER/out with
kills, by ``itkstream register WORDS... --out``, and ends with how many notes it saw. Importing what
a run needs takes seconds, so each run is a fork of this process.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import itkstream.cli.config
import itkstream.pipelines  # noqa: F401
from itkstream.cli.app import main


def start(words: list[str], out: Path) -> int:
    """Begin a run in a process of its own."""
    child = os.fork()
    if child == 0:
        sys.argv = ["itkstream", "register", *words, "--out", str(out)]
        try:
            main()
        except SystemExit as end:
            os._exit(int(end.code or 0))
        os._exit(0)
    return child


def killed(words: list[str], out: Path) -> int:
    """Kill runs when they have noted a step more than those before; the last one ends."""
    done = 0
    for _ in range(40):
        child, status = start(words, out), None
        while status is None:
            notes = len(list((out / "steps").glob("*.json")))
            if notes > done:
                done = notes
                os.kill(child, signal.SIGKILL)
            time.sleep(0.002)
            ended, found = os.waitpid(child, os.WNOHANG)
            status = found if ended else None
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return done
    raise AssertionError("it was never done")


if __name__ == "__main__":
    folder, words = Path(sys.argv[1]), sys.argv[2:]
    _, status = os.waitpid(start(words, folder / "whole"), 0)
    assert status == 0
    sys.stdout.write(f"\n{killed(words, folder / 'out')}")
