"""A program that registers rounds, is killed on the way, and goes on, until it is done.

``python killed_rounds.py FOLDER ROUND...`` writes FOLDER/whole in one go and FOLDER/out with kills,
and ends with their number: when the last round has noted something, and when blocks of the joined
image are there. Each run is a fork of this process: importing what it needs takes seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from round_files import QUICK, STEPS

from itkstream.experiment.register import register_rounds

_WHEN = ("rounds/r3/steps/*.json", "joined.ome.zarr/0/c/*/*/*/*")


def start(words: list[str], out: Path) -> int:
    """Begin a run in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            register_rounds(words, out, channel="DAPI", steps=STEPS, settings=QUICK)
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    return child


def killed(words: list[str], out: Path) -> int:
    """Kill a run at each of the places; the last run ends."""
    kills = 0
    for place in (*_WHEN, ""):
        child = start(words, out)
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
                break
            if place and any(out.glob(place)):
                os.kill(child, signal.SIGKILL)
                kills += 1
                place = ""
            time.sleep(0.002)
    return kills


if __name__ == "__main__":
    folder, words = Path(sys.argv[1]), sys.argv[2:]
    _, status = os.waitpid(start(words, folder / "whole"), 0)
    assert status == 0
    sys.stdout.write(f"\n{killed(words, folder / 'out')}")
