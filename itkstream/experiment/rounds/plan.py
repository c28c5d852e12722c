"""The plan of an experiment: rounds opened, each registration checked before one begins."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from attrs import frozen
from dask.tokenize import tokenize

from itkstream.blocks.fingerprint import code_version
from itkstream.errors import ItkstreamError
from itkstream.experiment.joined import joined_type
from itkstream.experiment.rounds.manifest import OpenedRound, refuse_together
from itkstream.geometry import Image
from itkstream.io.storage.locations import Location
from itkstream.registration.request import Given, Request, read_request
from itkstream.registration.settings import RegisterSettings
from itkstream.registration.steps import Step
from itkstream.workers import Resources

__all__ = ["ExperimentPlan"]


@frozen(eq=False, slots=False)
class ExperimentPlan:
    """The opened rounds, how they are registered, and the folder that is meant.

    `place` is that of the reference among the rounds; so many are registered in `parallel`.
    """

    opened: tuple[OpenedRound, ...]
    place: int
    chain: bool
    steps: tuple[Step, ...]
    settings: RegisterSettings
    resources: Resources
    out: Location
    parallel: int = 1

    @property
    def reference(self) -> OpenedRound:
        """The round that the others are brought onto."""
        return self.opened[self.place]

    @property
    def others(self) -> list[OpenedRound]:
        """The rounds that are registered, in their order."""
        return [o for k, o in enumerate(self.opened) if k != self.place]

    @property
    def fixed(self) -> Image:
        """The image of the reference, in µm."""
        return next(iter(self.requests.values())).pair[0]

    def request(self, own: OpenedRound, onto: OpenedRound) -> Request:
        """Check the registration of a round onto another one."""
        images = onto.image, own.image
        given = Given(*images, fixed_mask=onto.round.mask, moving_mask=own.round.mask)
        return read_request(given, self.steps, self.settings, self.resources, self.out)

    @cached_property
    def requests(self) -> dict[str, Request]:
        """The registrations onto the reference by the names of rounds; all are refused if one is.

        Raises an error that names the rounds that cannot be registered, and why.
        """
        found: dict[str, Request] = {}
        problems: dict[str, ItkstreamError] = {}
        for own in self.others:
            try:
                found[own.round.name] = self.request(own, self.reference)
            except ItkstreamError as error:
                problems[own.round.name] = error
        refuse_together(problems, len(self.opened))
        joined_type(self.opened)
        return found

    @cached_property
    def key(self) -> str:
        """A token of all that the results depend on."""
        seen = [(name, r.pair, r.masks) for name, r in self.requests.items()]
        channels = [(o.names, o.channels) for o in self.opened]
        settings = replace(self.settings, report=True)
        token: str = tokenize(code_version(), seen, channels, self.chain, self.steps, settings)
        return token
