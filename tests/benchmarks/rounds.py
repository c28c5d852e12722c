"""Measure a synthetic experiment: every round against a pairwise run, kills, and memory.

    python tests/benchmarks/rounds.py [errors|kills|memory ...]

All three by default, on ``itkstream.phantoms.make_experiment()``: four rounds of three channels,
5 % of the nuclei missing in each, one turned by 20 degrees, one that shares half of its length with
the reference. Every command runs in a process of its own.

- errors: target registration error of each round of one experiment, and of `itkstream register` of
  the same two images;
- kills: the same experiment, killed twice by SIGKILL, in a round and as the joined image is
  written; its joined image and transforms against those of the first, byte by byte;
- memory: peak of an experiment of 2, of 4 and of 6 rounds of one kind, affines alone, so that what
  grows with the number of rounds would show.

On 2 shared cores: errors of rounds were those of pairs in every digit, 0.085 / 0.247, 0.109 / 0.298
and 0.099 / 0.278 voxels (median / 95th percentile) for an ordinary, the turned and the half round;
no file differed after the kills; peaks were 654, 654 and 690 MB.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from itkstream import read_transform
from itkstream.phantoms import (
    ExperimentSettings,
    Motion,
    PhantomExperiment,
    PhantomSettings,
    make_experiment,
)

__all__ = ["errors_of_rounds", "kill_twice", "peaks"]

_RUN = """
import json, resource, sys
import itkstream.cli.app
sys.argv = ["itkstream", *sys.argv[1:]]
try:
    itkstream.cli.app.main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3))
"""
_KILLED = ("rounds/round3/steps/[0-9].json", "joined.ome.zarr/0/c/*/*/*/*")
_QUICK = "error_map: false\nreport: false\nsteps: [ransac-affine]\n"


def run(*words: str) -> float:
    """Run a command in a process of its own; its peak memory in MB."""
    done = subprocess.run([sys.executable, "-c", _RUN, *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{done.stdout}\n{done.stderr}")
    return float(json.loads(done.stdout.split("\n")[-2]))


def errors_of_rounds(
    made: PhantomExperiment, files: list[str], folder: Path
) -> list[dict[str, object]]:
    """Register the experiment and each pair alone; medians and 95th percentiles in voxels."""
    run("rounds", *files, "--channel", "DAPI", "--out", str(folder / "experiment"))
    facts = json.loads((folder / "experiment/experiment.json").read_bytes())
    rows: list[dict[str, object]] = []
    for number, entry in enumerate(facts["rounds"][1:], 1):
        alone = folder / f"pair{number}"
        run("register", files[0], files[number], "--channel", "DAPI", "--out", str(alone))
        row: dict[str, object] = {
            "round": entry["name"],
            "verdict": entry["verdict"]["outcome"],
            "cycles_um": [c["median_um"] for c in facts["cycles"] if entry["name"] in c["rounds"]],
        }
        places = {"rounds": folder / "experiment" / entry["transform"], "pair": alone}
        for name, place in places.items():
            found = read_transform(place, ("x", "y", "z"))
            summary = made.pair(number).error(found.apply).summary()
            row |= {f"{name}_{q}": summary[f"{q}_vox"] for q in ("median", "p95")}
        rows.append(row)
    return rows


def kill_twice(files: list[str], folder: Path) -> tuple[int, int]:
    """Run the experiment again with two kills; how many files differ, of how many."""
    out = folder / "killed"
    words = ["rounds", *files, "--channel", "DAPI", "--out", str(out)]
    for place in _KILLED:
        child = subprocess.Popen(
            [sys.executable, "-c", _RUN, *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while child.poll() is None and not any(out.glob(place)):
            time.sleep(0.005)
        if child.poll() is not None:
            raise RuntimeError(f"it ended before {place} was there")
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    run(*words)
    whole, found = _results(folder / "experiment"), _results(out)
    names = whole.keys() | found.keys()
    return sum(whole.get(name) != found.get(name) for name in names), len(names)


def _results(out: Path) -> dict[str, bytes]:
    """Bytes of the joined image and of all transforms, aligned images and error maps."""
    files = (p for p in out.rglob("*") if p.is_file() and ".ome.zarr" in str(p))
    kept = (p for p in files if ".itkstream" not in p.parts and "steps" not in p.parts)
    return {str(p.relative_to(out)): p.read_bytes() for p in kept}


def peaks(folder: Path) -> dict[int, float]:
    """Peak memory of experiments of 2, 4 and 6 rounds of one kind, in MB."""
    tissue = PhantomSettings(
        (160, 160, 96), (1.0, 1.0, 1.5), motion=Motion(2.0, 0.01, 0.01, 0.02, 1.0)
    )
    settings = ExperimentSettings(6, tissue, turn_deg=0.0, overlap=1.0)
    make_experiment(settings).write(folder / "many")
    files = [str(folder / f"many/round{k}.ome.zarr") for k in range(1, 7)]
    config = folder / "quick.yaml"
    config.write_text(_QUICK)
    found = {}
    for count in (2, 4, 6):
        words = [*files[:count], "--config", str(config), "--out", str(folder / f"peak{count}")]
        found[count] = run("rounds", *words, "--channel", "DAPI")
    return found


def main(wanted: list[str]) -> None:
    """Measure what is wanted, all by default, and print it."""
    console, wanted = Console(), wanted or ["errors", "kills", "memory"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if set(wanted) & {"errors", "kills"}:
            made = make_experiment()
            made.write(folder / "made")
            files = [str(folder / f"made/{r.name}.ome.zarr") for r in made.rounds]
            rows = errors_of_rounds(made, files, folder)
            table = Table(*rows[0])
            for row in rows:
                table.add_row(
                    *(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values())
                )
            console.print(table)
        if "kills" in wanted:
            differ, count = kill_twice(files, folder)
            console.print(f"after two kills {differ} of {count} files differ")
        if "memory" in wanted:
            for count, peak in peaks(folder).items():
                console.print(f"{count} rounds: {peak:.0f} MB at most")


if __name__ == "__main__":
    main(sys.argv[1:])
