"""A program that registers rounds, is killed on the way, and goes on, until it is done.

``python killed_rounds.py FOLDER N ROUND...`` writes FOLDER/whole in one go and FOLDER/out with
kills, N rounds at a time, and ends with the number of kills: when the last round has noted
something, and when blocks of the joined image are there. Each run is a fork of this process:
importing what it needs takes seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from round_files import QUICK, STEPS

from itkstream.experiment.register import register_rounds
from itkstream.workers import Resources

_WHEN = ("rounds/r3/steps/*.json", "joined.ome.zarr/0/c/*/*/*/*")


def start(words: list[str], out: Path, parallel: int = 1) -> int:
    """Begin a run in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            workers = Resources(n_workers=2) if parallel > 1 else Resources()
            how = {"steps": STEPS, "settings": QUICK, "parallel": parallel, "resources": workers}
            register_rounds(words, out, channel="DAPI", **how)
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    return child


def killed(words: list[str], out: Path, parallel: int) -> int:
    """Kill a run at each of the places; the last run ends."""
    kills = 0
    for place in (*_WHEN, ""):
        child = start(words, out, parallel)
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
    folder, words = Path(sys.argv[1]), sys.argv[3:]
    _, status = os.waitpid(start(words, folder / "whole"), 0)
    assert status == 0
    sys.stdout.write(f"\n{killed(words, folder / 'out', int(sys.argv[2]))}")
