"""Registration of an experiment of several rounds, from its images to its folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from attrs import frozen

from itkstream.errors import InputError
from itkstream.experiment.folder import JOINED, OVERVIEW, ExperimentFolder, read_experiment
from itkstream.experiment.rounds.manifest import (
    MANIFEST_ENDINGS,
    Manifest,
    Round,
    name_rounds,
    open_rounds,
    read_manifest,
)
from itkstream.experiment.rounds.plan import ExperimentPlan
from itkstream.experiment.rounds.run import ExperimentRun
from itkstream.io import ImageOptions
from itkstream.io.storage.inputs import check_apart
from itkstream.io.storage.locations import Location
from itkstream.judge.verdict import Verdict
from itkstream.pipelines import DEFAULT_STEPS
from itkstream.progress.shown import Told, telling
from itkstream.registration.settings import RegisterSettings
from itkstream.registration.steps import Step, checked_steps
from itkstream.workers import Resources, check_count, session

__all__ = ["Experiment", "RegisteredRound", "register_rounds"]


@frozen(eq=False)
class RegisteredRound:
    """A round of an experiment, and what became of it.

    Parameters
    ----------
    name : str
        The round.
    folder : Location or None
        Its registration folder; None for the reference.
    transform : Location or None
        From points of the reference to points of the round; None for the reference, and where it
        failed.
    error : Location or None
        The map of its error, on a coarse lattice of the reference, where there is one.
    verdict : Verdict or None
        On its registration and its cycles; None for the reference, and where there is no result.
    failed : str
        Why there is no result; empty where there is one.
    channels : tuple of str
        Names of its channels.
    seconds : float
        What its registration took.

    Examples
    --------
    >>> second = itkstream.Experiment.read("rounds").rounds[1]
    >>> second.name, second.channels
    ('round2', ('DAPI', 'GeneA', 'GeneB'))
    >>> itkstream.Registration.open(second.folder).verdict.outcome
    'good'
    """

    name: str
    folder: Location | None
    transform: Location | None
    error: Location | None
    verdict: Verdict | None
    failed: str
    channels: tuple[str, ...]
    seconds: float

    @property
    def outcome(self) -> str:
        """Outcome of the verdict; 'failed' where there is no result, 'reference' for that one."""
        if self.failed:
            return "failed"
        return self.verdict.outcome if self.verdict else "reference"


@frozen(eq=False)
class Experiment:
    """Result of `register_rounds`, read from its folder.

    Parameters
    ----------
    out : Location
        The folder.
    reference : str
        Name of the round that the others were brought onto.
    rounds : tuple of RegisteredRound
        All rounds, in their order.
    facts : dict
        What experiment.json holds.

    Examples
    --------
    >>> experiment = itkstream.Experiment.read("rounds")
    >>> experiment.reference, experiment.joined.name
    ('round1', 'joined.ome.zarr')
    """

    out: Location
    reference: str
    rounds: tuple[RegisteredRound, ...]
    facts: dict[str, Any]

    @property
    def joined(self) -> Location:
        """The image of all channels of all rounds that did not fail."""
        return self.out / JOINED

    @property
    def overview(self) -> Location:
        """The page about all rounds."""
        return self.out / OVERVIEW

    @property
    def faults(self) -> tuple[str, ...]:
        """Kinds of error of the rounds that have no result."""
        return tuple(r["fault"] for r in self.facts["rounds"] if r["fault"])

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Experiment:
        """Read the folder of an experiment.

        Parameters
        ----------
        folder : path
            What `register_rounds` wrote.

        Returns
        -------
        Experiment
            Its rounds.

        Raises
        ------
        MissingDataError
            Where the folder is no experiment.

        Examples
        --------
        >>> itkstream.Experiment.read("rounds").reference
        'round1'
        """
        out, facts = Location.parse(folder), read_experiment(folder)
        rounds = tuple(_read_round(out, entry) for entry in facts["rounds"])
        return cls(out, facts["reference"], rounds, facts)


def _read_round(out: Location, entry: dict[str, Any]) -> RegisteredRound:
    places = {n: out / entry[n] if entry[n] else None for n in ("folder", "transform", "error")}
    verdict = None if entry["verdict"] is None else Verdict.from_facts(entry["verdict"])
    said = entry["failed"] or "", tuple(entry["channels"]), float(entry["seconds"])
    return RegisteredRound(
        entry["name"], places["folder"], places["transform"], places["error"], verdict, *said
    )


def register_rounds(
    rounds: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Round],
    out: str | os.PathLike[str],
    *,
    reference: int | str | None = None,
    channel: int | str | None = None,
    chain: bool = False,
    parallel: int = 1,
    steps: Sequence[Step] = DEFAULT_STEPS,
    settings: RegisterSettings | None = None,
    resources: Resources | None = None,
    overwrite: bool = False,
    reporter: Told = "auto",
) -> Experiment:
    """Register all rounds of an experiment onto one of them, and join them in one image.

    All input is checked before anything is computed. Rounds are registered one after the other, or
    side by side on the workers, each as `itkstream.register` does it; one that fails stops no
    other. Then key points of rounds that follow each other are matched directly: where these lie
    elsewhere than the way by the reference says, the round is to be looked at [1]_. All channels of
    the rounds that did not fail are resampled once. The same call goes on where a run was killed.

    Writes into `out`:

    - ``experiment.json``: of each round the image, channels, folder, transform, error, verdict and,
      where it has no result, the reason; the cycles;
    - ``rounds/NAME``: the registration of each round, with its report (`itkstream.register`);
    - ``joined.ome.zarr``: all channels on the voxels of the reference, axes c, z, y, x (OME-Zarr
      0.5), channels called ROUND:CHANNEL;
    - ``overview.html`` and ``overview.json``: a page with a table and pictures of all rounds, and
      its numbers.

    Parameters
    ----------
    rounds : sequence of path or Round, or path
        The rounds in their order, at least two; those of paths are named after their files. Or the
        path of a manifest: YAML with a list of rounds, or a CSV table, of name, path, and where
        they are needed channel, spacing, unit, axes, time, level, mask. Paths are relative to it.
    out : path
        The folder to write, new or empty.
    reference : int or str, optional
        The round that the others are brought onto, counted from 1, or its name; default what the
        manifest says, else the first.
    channel : int or str, optional
        The channel that is registered, of rounds that say none: counted from 0, or its name.
    chain : bool
        Whether a round is registered onto its neighbour towards the reference where that shows at
        least a tenth more of its tissue. Its transform from the reference is then one field, stored
        as ``rounds/NAME/to_reference.ome.zarr``.
    parallel : int
        Rounds that are registered at a time, with the same result. More than one needs workers,
        which they share; each takes this process some memory for its coarse levels. In a chain
        there are two at most, one on each side of the reference.
    steps : sequence of Step
        As in `itkstream.register`.
    settings : RegisterSettings, optional
        What holds for all rounds.
    resources : Resources, optional
        Workers and threads; the same workers serve all rounds.
    overwrite : bool
        Replace an experiment in `out`, which stays until this one is complete.
    reporter : Reporter, 'auto' or None
        Gets steps, blocks and results. By default a progress bar in a notebook or on a terminal,
        and plain lines elsewhere; None for silence. The log is written in all three cases.

    Returns
    -------
    Experiment
        The rounds and what became of each.

    Raises
    ------
    InputError
        For fewer than two rounds, several at a time without workers, names or images that are
        there twice, images, channels, masks or a reference that cannot be used, and an `out` that
        touches an input; the message names the rounds.
    MissingDataError
        Where an image, a mask or the manifest is not there.
    ExistingOutputError
        Where `out` holds something else, or another experiment.
    PlanError
        Where a round needs more memory than there is.
    OutputError, WorkersError
        Where nothing can be written, or workers are lost.

    References
    ----------
    .. [1] T. Datteri and B. M. Dawant, "Estimation of rigid-body registration quality using
       registration networks", Proc. SPIE 8314 (2012) 831419, doi:10.1117/12.911316.

    Examples
    --------
    >>> rounds = ["examples/round1.ome.zarr", "examples/round2.ome.zarr"]
    >>> experiment = itkstream.register_rounds(rounds, "rounds", channel="DAPI")
    >>> [(one.name, one.outcome) for one in experiment.rounds]
    [('round1', 'reference'), ('round2', 'good')]
    """
    manifest = _manifest(rounds, reference).check()
    check_apart(out, *(r.image for r in manifest.rounds), *(r.mask for r in manifest.rounds))
    plan = ExperimentPlan(
        tuple(open_rounds(manifest, channel)),
        manifest.place,
        chain,
        checked_steps(steps),
        settings or RegisterSettings(),
        resources or Resources(),
        Location.parse(out),
        _at_a_time(parallel, resources or Resources()),
    )
    folder = ExperimentFolder(out, plan.key, overwrite)
    folder.check()
    with folder.locked(), telling(reporter) as told:
        with session(folder.with_engine(plan.resources), told.note) as shared:
            ExperimentRun(plan, folder, shared, told).all_rounds()
        return Experiment.read(folder.finish())


def _at_a_time(parallel: int, resources: Resources) -> int:
    """The number of rounds that are registered at a time, if there are workers for them."""
    check_count("parallel", parallel)
    if parallel > 1 and not resources.has_workers:
        raise InputError(
            f"{parallel} rounds at a time share workers, and there are none: give workers of this "
            "machine (--workers, n_workers=) or a cluster. Threads of one process work on a round "
            "together"
        )
    return parallel


def _manifest(
    rounds: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Round],
    reference: int | str | None,
) -> Manifest:
    """The rounds of a manifest, or of paths, with the reference that is asked for."""
    if isinstance(rounds, (str, os.PathLike)):
        if not os.fspath(rounds).lower().endswith(MANIFEST_ENDINGS):
            raise InputError(
                f"expected at least two rounds, or a manifest ({', '.join(MANIFEST_ENDINGS)}); got "
                f"{rounds}"
            )
        found = read_manifest(rounds)
    else:
        paths = [given for given in rounds if not isinstance(given, Round)]
        named = iter(name_rounds(paths, ImageOptions()) if paths else ())
        found = Manifest(tuple(g if isinstance(g, Round) else next(named) for g in rounds))
    return found if reference is None else Manifest(found.rounds, reference)
