"""Channels that drive one transform: pairs of them, their evidence, and the one that leads.

Key points of all channels are pooled. Intensities are compared, and a deformation is judged, by the
channel that leads: the one that tells most, which is its weight times the share of local
correlation that it has above chance. The others pull beside it by what they tell; one that tells
next to nothing is left out, so it cannot hurt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from itkstream.blocks.sources import readable
from itkstream.errors import InputError
from itkstream.geometry import ChannelPair, Image, Transform
from itkstream.numerics.evidence.chance import correlation_by_chance
from itkstream.registration.scene import Scene

__all__ = ["CHANNELS", "led_by", "name_pairs", "pair_channels", "weigh_channels"]

CHANNELS = "channels"
"""Name of the facts of channels in a report."""

# A channel that tells less than this share of what the best one does is left out.
_LEAST = 0.1


def pair_channels(pair: tuple[Image, Image]) -> tuple[ChannelPair, ...]:
    """Pair the channels of both images, in their order, each with the weight that either states."""
    fixed, moving = pair[0].channels, pair[1].channels
    if len(fixed) != len(moving):
        raise InputError(
            f"channels are registered in pairs: {len(fixed)} of the fixed image and {len(moving)} "
            "of the moving one were given; name as many of both, in the order in which they belong "
            "together"
        )
    return tuple(
        ChannelPair(readable(a), readable(b), _weight(a, b))
        for a, b in zip(fixed, moving, strict=True)
    )


def name_pairs(pairs: Sequence[ChannelPair]) -> list[dict[str, Any]]:
    """Names of the pairs of channels, the arguments that open them, and weights, for a report."""
    return [
        {"fixed": _named(pair.fixed), "moving": _named(pair.moving), "weight": pair.weight}
        for pair in pairs
    ]


def _named(image: Image) -> dict[str, Any]:
    """Name of a channel, and the arguments that open its file."""
    return {"name": image.name, "channel_name": image.channel, "opened": image.recipe}


def weigh_channels(scene: Scene, transform: Transform) -> tuple[Scene, dict[str, Any]]:
    """The scene led by the channel that tells most, as images lie now, and facts of all."""
    if not scene.others:
        return scene, {}
    facts = []
    for channel in scene.channels:
        aligned = channel.aligned(transform).read()
        reached = channel.own_correlation(transform)
        chance = correlation_by_chance(channel.coarse[0].read(), aligned, channel.tissue)
        above = max(0.0, (reached - chance) / (1 - chance))
        facts.append({"local_correlation": reached, "by_chance": chance, "above": above})
    tells = np.array([s.weight * f["above"] for s, f in zip(scene.channels, facts, strict=True)])
    if not tells.any():
        # Nothing is known of any: as they were given.
        tells = np.array([channel.weight for channel in scene.channels])
    shares = np.where(tells >= _LEAST * tells.max(), tells / tells.max(), 0.0)
    told = [
        {name: round(float(value), 4) for name, value in one.items() if name != "above"}
        | {"share": round(float(share), 4)}
        for one, share in zip(facts, shares, strict=True)
    ]
    counts = [one["share"] for one in told]
    scene.reporter.note(f"channels count for {', '.join(f'{count:.2g}' for count in counts)}")
    return led_by(scene, counts), {CHANNELS: told}


def led_by(scene: Scene, shares: Sequence[float]) -> Scene:
    """The scene led by the channel of the greatest share, without those that have none."""
    if not scene.others:
        return scene
    lead = int(np.argmax(shares))
    known = [
        replace(channel, weight=float(share), others=())
        for channel, share in zip(scene.channels, shares, strict=True)
    ]
    others = (one for number, one in enumerate(known) if number != lead and one.weight > 0)
    return replace(known[lead], others=tuple(others))


def _weight(fixed: Image, moving: Image) -> float:
    """Weight of a pair of channels, which either of them states, or both alike."""
    stated = {image.weight for image in (fixed, moving) if image.weight is not None}
    if len(stated) > 1:
        raise InputError(
            f"the channels {fixed.channel or fixed.name!r} and {moving.channel or moving.name!r} "
            f"are one pair and have two weights, {fixed.weight:g} and {moving.weight:g}: say one"
        )
    return stated.pop() if stated else 1.0
