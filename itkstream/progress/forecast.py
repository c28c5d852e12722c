"""Time that is left of a run: what its plan says, corrected by what it took so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from itkstream.progress.reporters import Part

__all__ = ["Forecast"]

# The plan is believed as if this share of what is to come had gone by it.
_BELIEF = 0.1
# Least share of a part that is left to its blocks, however long it took to come to them.
_LEAST_IN_BLOCKS = 0.1
# Seconds a part costs at least: a pace is a quotient of prices, which nothing would make infinite.
_LEAST_PRICE = 1e-3


class Forecast:
    """Time left of a run of which every part has a price in seconds.

    What is to come costs its price times the pace: seconds taken over seconds priced, of what is
    done. How much of a part is done is told by its blocks and, before there are any, by its price.
    What an earlier run did is done, and says nothing of the pace. The caller has the clock: `now`
    are seconds that do not go back.

    Parameters
    ----------
    parts : sequence of Part
        Everything that will run, in order.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self._later = 0
        self._taken = self._worked = 0.0
        self._running: _Running | None = None

    def begin(self, title: str, now: float) -> int | None:
        """End the part that runs, and begin the next one of that title.

        Parts before it that never began are left out.

        Returns
        -------
        int or None
            Its number, from 1; None where none is expected, which changes nothing.
        """
        numbers = range(self._later, len(self.parts))
        found = next((i for i in numbers if self.parts[i].title == title), None)
        if found is None:
            return None
        self._end(now)
        self._later = found + 1
        price = max(_LEAST_PRICE, self.parts[found].seconds)
        self._running = _Running(price, now, self._pace(now))
        return self._later

    def finish(self, now: float) -> None:
        """End the run: nothing is left."""
        self._end(now)
        self._later = len(self.parts)

    def blocks(self, done: int, total: int, now: float) -> None:
        """Note how many blocks of the part are done; the first call tells those that were there."""
        if self._running is not None:
            self._running.count(done / total if total else 1.0, now)

    def left(self, now: float) -> float:
        """Estimate the seconds that are left of the whole run; never below 0."""
        return self._to_come(now) * self._pace(now)

    def _to_come(self, now: float) -> float:
        """Price of what is not done."""
        later = sum(max(_LEAST_PRICE, part.seconds) for part in self.parts[self._later :])
        running = self._running
        return later + (running.price * (1.0 - running.share(now)) if running else 0.0)

    def _pace(self, now: float) -> float:
        """Seconds that a priced second takes."""
        running, belief = self._running, _BELIEF * self._to_come(now)
        taken, worked = self._taken + belief, self._worked + belief
        if running is not None:
            taken, worked = taken + now - running.began, worked + running.worked(now)
        return taken / worked if worked > 0.0 else 1.0

    def _end(self, now: float) -> None:
        if self._running is not None:
            self._taken += now - self._running.began
            self._worked += self._running.price * (1.0 - self._running.kept)
            self._running = None


@dataclass
class _Running:
    """The part that runs: its price, since when, the pace until then, and shares of it.

    `before` went before its blocks, `kept` was there, `counted` of the blocks are done.
    """

    price: float
    began: float
    pace: float
    before: float = 0.0
    kept: float = 0.0
    counted: float | None = None

    def count(self, share: float, now: float) -> None:
        if self.counted is None:
            self.before = min(self.share(now), 1.0 - _LEAST_IN_BLOCKS) if share < 1.0 else 0.0
            self.kept = (1.0 - self.before) * share
        self.counted = max(self.counted or 0.0, share)

    def share(self, now: float) -> float:
        """The share of it that is done."""
        if self.counted is not None:
            return self.before + (1.0 - self.before) * self.counted
        expected = self.price * self.pace
        return min(1.0, (now - self.began) / expected) if expected > 0.0 else 1.0

    def worked(self, now: float) -> float:
        """Price of what was done since it began."""
        return self.price * max(0.0, self.share(now) - self.kept)
