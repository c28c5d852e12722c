"""The run of an experiment: its rounds, cycles, joined image, page; noted as it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from threading import Lock
from typing import Any

import numpy as np

from itkstream.errors import (
    AccessError,
    BlockErrors,
    InputError,
    MissingDataError,
    RegistrationError,
    UnreadableDataError,
)
from itkstream.experiment.folder import JOINED, TO_REFERENCE, ExperimentFolder
from itkstream.experiment.joined import JoinedRound, joined_channels, write_joined
from itkstream.experiment.overview import write_overview
from itkstream.experiment.rounds.abreast import Beside, OfRound, run_abreast
from itkstream.experiment.rounds.chain import (
    add_errors,
    arms_outwards,
    find_overlap,
    store_through,
)
from itkstream.experiment.rounds.cycles import Cycle, close_ring, doubt_cycles, small_level
from itkstream.experiment.rounds.manifest import OpenedRound
from itkstream.experiment.rounds.plan import ExperimentPlan
from itkstream.geometry import AffineTransform, Image, Transform
from itkstream.io.transforms.ngff.store import read_transform
from itkstream.judge.verdict import Verdict
from itkstream.pipelines import run_with_report
from itkstream.progress.reporters import Reporter
from itkstream.registration.folder import ERROR, ROUNDS, TRANSFORM, RunFolder
from itkstream.workers import Resources

__all__ = ["ExperimentRun"]

# Faults of a round or its file: others go on. A full disk or lost workers stop all.
_OF_ONE_ROUND = (
    RegistrationError,
    BlockErrors,
    UnreadableDataError,
    InputError,
    MissingDataError,
    AccessError,
)


class ExperimentRun:
    """One run of an experiment: what is known of its rounds, noted as it is found."""

    def __init__(
        self, plan: ExperimentPlan, folder: ExperimentFolder, shared: Resources, reporter: Reporter
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.shared = shared
        self.reporter = reporter
        known = folder.recall()
        self.joined: dict[str, Any] = known.get("joined") or {}
        self.was_complete: bool = known.get("complete", False)
        self.cycles: list[Cycle] = []
        self._noting = Lock()
        self.entries = {o.round.name: _entry(o) for o in plan.opened}

    def all_rounds(self) -> None:
        """Register all rounds, compare them with each other, join them and write the page."""
        self._note()
        self._register_all()
        self._compare()
        self._join()
        self.reporter.step("overview")
        rounds = self._facts()
        images = {self.plan.reference.round.name: self.plan.fixed}
        images |= {name: request.pair[1] for name, request in self.plan.requests.items()}
        voxels = self.plan.settings.coarse_voxels
        page = write_overview(self.folder.work, rounds, images, voxels)
        self.reporter.note(str(page.settled))
        self._note(complete=True)

    def _facts(self) -> dict[str, Any]:
        return {
            "reference": self.plan.reference.round.name,
            "chain": self.plan.chain,
            "rounds": list(self.entries.values()),
            "cycles": [cycle.facts for cycle in self.cycles],
            "joined": self.joined or None,
        }

    def _note(self, complete: bool = False) -> None:
        # A complete experiment that is looked through again stays so meanwhile.
        if complete or not self.was_complete:
            with self._noting:
                self.folder.note(self._facts(), complete)

    def _register_all(self) -> None:
        """Register all rounds, one after the other or side by side."""
        arms = arms_outwards(len(self.plan.opened), self.plan.place, self.plan.chain)
        if self.plan.parallel == 1:
            for arm in arms:
                self._register_arm(arm, partial(OfRound, self.reporter))
            return
        beside = Beside(self.reporter)
        jobs = [partial(self._register_arm, arm, beside.of) for arm in arms]
        run_abreast(jobs, self.plan.parallel, beside)

    def _register_arm(
        self, arm: Sequence[tuple[int, int]], teller: Callable[[str], Reporter]
    ) -> None:
        """Register rounds that may need each other, one after the other."""
        for own, neighbour in arm:
            opened = self.plan.opened[own]
            number = self.plan.others.index(opened) + 1
            told = teller(f"round {number} of {len(self.plan.others)}, {opened.round.name}")
            self._register(opened, self.plan.opened[neighbour], told)
            self._note()

    def _register(self, own: OpenedRound, neighbour: OpenedRound, told: Reporter) -> None:
        """Register a round; what goes wrong with it is noted, and stops no other."""
        name, entry = own.round.name, self.entries[own.round.name]
        began = time.perf_counter()
        try:
            onto = self._target(own, neighbour, told)
            entry |= self._registered(own, onto, told)
        except _OF_ONE_ROUND as error:
            entry |= {"failed": str(error), "fault": type(error).__name__}
            entry["seconds"] = round(time.perf_counter() - began, 3)
            told.note(f"round {name} has no result, others go on: {error}")
        else:
            told.note(f"round {name}: {entry['verdict']['outcome']}")

    def _target(self, own: OpenedRound, neighbour: OpenedRound, told: Reporter) -> OpenedRound:
        """The round onto which one is registered: the reference, or a neighbour that shows more."""
        reference, near = self.plan.reference, self.entries[neighbour.round.name]
        if not self.plan.chain or neighbour is reference or not _is_usable(near):
            return reference
        told.step("overlap")
        level = self._level(own.round.name)
        direct, by = (
            find_overlap(self._level(o.round.name), level, self.shared, told)
            for o in (reference, neighbour)
        )
        chosen = neighbour if by.is_worth(direct) else reference
        told.note(
            f"{direct} of its tissue in {reference.round.name}, {by} in {neighbour.round.name}: "
            f"registered onto {chosen.round.name}"
        )
        return chosen

    def _registered(self, own: OpenedRound, onto: OpenedRound, told: Reporter) -> dict[str, Any]:
        """Register a round onto another one; facts for its entry."""
        name = own.round.name
        place = self.folder.work / ROUNDS / name
        request = self.plan.request(own, onto)
        threads = replace(request.resources, engine=self.shared.engine)
        request = replace(request, resources=self.shared if self.shared.has_workers else threads)
        found = run_with_report(request, RunFolder(place, request.names, False), told)
        entry = {
            "folder": f"{ROUNDS}/{name}",
            "transform": f"{ROUNDS}/{name}/{TRANSFORM}",
            "error": f"{ROUNDS}/{name}/{ERROR}" if found.error is not None else None,
            "verdict": found.verdict.facts,
            "onto": onto.round.name,
            "overlap": found.verdict.overlap,
            "predicted": _predicted(found.facts),
            "seconds": round(sum(s["seconds"] for s in found.facts["steps"]), 3),
        }
        return (
            entry if onto is self.plan.reference else entry | self._through(own, onto, found, told)
        )

    def _through(
        self, own: OpenedRound, onto: OpenedRound, found: Any, told: Reporter
    ) -> dict[str, Any]:
        """Store the way of a round by its neighbour from the reference, and its error."""
        told.step("transform from the reference")
        request = self.plan.requests[own.round.name]
        folder, near = found.out, self.entries[onto.round.name]
        way, settings = self._way(onto.round.name), request.plan.settings
        ways = way, read_transform(folder / TRANSFORM, request.pair[0].grid.axes)
        store_through(request.pair, ways, folder, settings, self.shared, told)
        entry: dict[str, Any] = {"transform": f"{ROUNDS}/{own.round.name}/{TO_REFERENCE}"}
        if near["error"] and found.error is not None:
            error = self.folder.work / near["error"]
            added = add_errors(error, way, folder, request.pair[0], self.shared)
            entry["error"] = added.relative_to(self.folder.work)
        if near["verdict"]["outcome"] == "look" and found.verdict.outcome == "good":
            text = f"it was registered onto {onto.round.name}, which is to be looked at itself"
            entry["verdict"] = replace(found.verdict, outcome="look", reasons=(text,)).facts
        return entry

    def _way(self, name: str) -> Transform:
        """The transform from the reference to a round."""
        reference = self.plan.fixed
        stored = self.entries[name]["transform"]
        if stored is None:
            return AffineTransform(np.eye(reference.ndim + 1))
        return read_transform(self.folder.work / stored, reference.grid.axes)

    def _level(self, name: str) -> Image:
        """The small level of a round, or of the reference."""
        voxels = self.plan.settings.coarse_voxels
        if name == self.plan.reference.round.name:
            # Of a round beside this one, the level may still be written.
            done = (e["folder"] for e in self.entries.values() if e["folder"])
            there = next((self.folder.work / folder for folder in done), None)
            return small_level(self.plan.fixed, voxels, there, "fixed")
        folder = self.folder.work / ROUNDS / name
        return small_level(self.plan.requests[name].pair[1], voxels, folder, "moving")

    def _compare(self) -> None:
        """Match rounds directly with each other, and take what that says into their verdicts."""
        names = [n for n in self.plan.requests if _is_usable(self.entries[n])]
        if len(names) < 2:
            return
        self.reporter.step("cycles")
        levels = {name: partial(self._level, name) for name in names}
        ways = {name: self._way(name) for name in names}
        self.cycles = close_ring(names, levels, ways, min(self.plan.fixed.spacing))
        for cycle in self.cycles:
            self.reporter.note(cycle.describe())
        for name in names:
            entry = self.entries[name]
            verdict = doubt_cycles(name, Verdict.from_facts(entry["verdict"]), self.cycles)
            entry["verdict"] = verdict.facts
        self._note()

    def _join(self) -> None:
        """Write the joined image of the reference and of all rounds that did not fail."""
        kept: list[OpenedRound] = []
        left: list[OpenedRound] = []
        for opened in self.plan.opened:
            name = opened.round.name
            usable = opened is self.plan.reference or _is_usable(self.entries[name])
            (kept if usable else left).append(opened)
        self.reporter.step("joined image")
        if left:
            names = ", ".join(opened.round.name for opened in left)
            self.reporter.note(f"left out, as they failed: {names}")
        rounds = [JoinedRound(opened, self._way(opened.round.name)) for opened in kept]
        settings = self.plan.settings
        files = write_joined(
            self.folder.work / JOINED,
            rounds,
            self.plan.reference.image.grid,
            (settings.blocksize, settings.background),
            self.shared,
            self.reporter.blocks,
            self.joined.get("files"),
        )
        channels = [
            {
                "label": c.label,
                "round": c.round,
                "channel": c.name,
                "registered": c.registered,
                "colour": f"#{c.hexadecimal}",
            }
            for c in joined_channels(kept)
        ]
        self.joined = {"path": JOINED, "files": files, "channels": channels}
        self._note()


def _entry(opened: OpenedRound) -> dict[str, Any]:
    """A round before anything is known of it, as experiment.json holds it."""
    return {
        "name": opened.round.name,
        "image": opened.path,
        "options": asdict(opened.round.options),
        "mask": opened.round.mask,
        "channels": list(opened.names),
        "registered_channel": opened.names[opened.registered],
        "folder": None,
        "transform": None,
        "error": None,
        "verdict": None,
        "failed": None,
        "fault": None,
        "onto": None,
        "overlap": None,
        "predicted": None,
        "seconds": 0.0,
    }


def _is_usable(entry: dict[str, Any]) -> bool:
    """Whether a round has a result that is not failed."""
    return entry["verdict"] is not None and entry["verdict"]["outcome"] != "failed"


def _predicted(report: dict[str, Any]) -> dict[str, Any] | None:
    """The predicted error in the tissue, in µm; None where none was asked for."""
    error = report.get("error")
    return None if not error else {n: error.get(n) for n in ("median_um", "p95_um")}
