"""Every exported file in every program that reads it.

``python tests/clients/check_programs.py --work DIR`` makes the clients' environments from PyPI in
DIR (and keeps them there for the next run), writes the files with the itkstream of this
interpreter, has each client map points through them, and prints the largest error. What elastix
and Slicer write themselves is read back as well. The exit code is 1 if an error is too large. A
client that cannot be installed is skipped, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from programs import WRITERS

from itkstream.io.transforms.files import read_transform

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Client:
    """A program and where it runs.

    Parameters
    ----------
    name : str
        As in ``programs.CLIENTS``.
    needs : tuple of str
        What pip installs.
    environment : str
        Clients of one name share one; Slicer brings libraries that clash with the others'.
    """

    name: str
    needs: tuple[str, ...]
    environment: str = "itk"


CLIENTS = (
    Client("SimpleITK", ("SimpleITK==2.5.7", "numpy")),
    Client("itk", ("itk==5.4.7",)),
    Client("antspyx", ("antspyx==0.6.3",)),
    Client("itk-elastix", ("itk-elastix==0.25.4",)),
    Client("picsl-greedy", ("picsl-greedy==1.4.0.3", "SimpleITK==2.5.7")),
    Client("picsl-c3d", ("picsl-c3d==1.4.6", "SimpleITK==2.5.7")),
    Client("nitransforms", ("nitransforms==25.1.0",)),
    Client("slicer-core", ("slicer-core==5.13.31053.0", "numpy"), "slicer"),
)


def install(client: Client, work: Path) -> str:
    """Install a client; gives why that failed, or nothing."""
    environment = work / "environments" / client.environment
    done = environment / f"{client.name}.installed"
    if done.exists() and done.read_text() == " ".join(client.needs):
        return ""
    if not (environment / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    # Compiling what is never imported would take half of the time.
    words = ["-m", "pip", "install", "-q", "--no-compile", "--disable-pip-version-check"]
    pip = subprocess.run(
        [str(environment / "bin" / "python"), *words, *client.needs],
        capture_output=True,
        text=True,
        check=False,
    )
    if pip.returncode:
        lines = [line for line in pip.stderr.splitlines() if "ERROR" in line]
        return (lines or ["pip failed"])[-1]
    done.write_text(" ".join(client.needs))
    return ""


def run(client: Client, work: Path, *arguments: Path) -> list[dict[str, Any]]:
    """What a client finds, or writes; a crash counts as a file it gets wrong."""
    python = work / "environments" / client.environment / "bin" / "python"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), str(HERE / "programs.py"), client.name, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        rows.append({"case": "crash", "files": last, "error": None, "allowed": 0.0, "unit": ""})
    return rows


def read_back(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What itkstream makes of the files a client wrote."""
    found = []
    for row in rows:
        if "path" not in row:
            found.append(row)
            continue
        points, mapped = np.array(row["points"]), np.array(row["mapped"])
        name = "/".join(Path(row["path"]).parts[-2:])
        transform = read_transform(row["path"], ("x", "y", "z"))
        error = float(np.abs(transform.apply(points) - mapped).max())
        judged = {"case": "written there", "files": name, "error": error, "unit": "micrometers"}
        found.append({**judged, "allowed": row["allowed"]})
    return found


def report(name: str, rows: list[dict[str, Any]]) -> int:
    """Print a line a client, and one for each file it gets wrong; gives how many these are."""
    wrong = [r for r in rows if r["error"] is None or not r["error"] <= r["allowed"]]
    worst = {}
    for found in rows:
        if found["error"] is not None:
            worst[found["unit"]] = max(worst.get(found["unit"], 0.0), found["error"])
    errors = ", ".join(f"{value:.1e} {unit}" for unit, value in sorted(worst.items()))
    say(f"{name:14}{len(rows):4} checks, largest error {errors or 'none measured'}")
    for r in wrong:
        say(f"  wrong: {r['case']}: {r['files']}: {r['error']} {r['unit']}, at most {r['allowed']}")
    if not rows:
        say("  wrong: nothing was checked")
    return len(wrong) + (not rows)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Install, write, check, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="where environments are kept")
    parser.add_argument("--only", nargs="*", choices=[c.name for c in CLIENTS])
    given = parser.parse_args()
    began = time.monotonic()
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        work = (given.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        files = Path(temporary) / "cases"
        subprocess.run([sys.executable, str(HERE / "transform_files.py"), str(files)], check=True)
        for client in CLIENTS:
            if given.only and client.name not in given.only:
                continue
            reason = install(client, work)
            if reason:
                say(f"{client.name:14}skipped: {reason}")
                continue
            rows = run(client, work, files / "manifest.json")
            if client.name in WRITERS:
                place = Path(temporary) / client.name
                place.mkdir()
                rows += read_back(run(client, work, files / "manifest.json", place))
            wrong += report(client.name, rows)
    say(f"{wrong} wrong, {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
