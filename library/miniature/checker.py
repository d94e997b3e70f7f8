"""Tells from an image which shape and colour is in it, and whether it shows the character. numpy only, no network.

The way is the same for both: a soft mask of the thing is shifted to its centre and scaled to its area, so position and
size do not matter, and is compared with masks of drawings made in the same way. Right answers on the drawings
themselves: see `tests/miniature/test_miniature.py`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from library.miniature.drawings import (
    COLOURS,
    POSES,
    SHAPES,
    SIZES,
    CharacterScene,
    Colour,
    Scene,
    Thing,
    draw,
    draw_character,
)

GRID = 24  # a mask is compared at GRID x GRID points
REACH = 1.05  # from its centre to the grid's edge, in square roots of the mask's area
BACKGROUND_DISTANCE = 55.0  # RGB distance from every colour of the border; backgrounds and their patterns stay below
CHARACTER_THRESHOLD = (
    0.45  # character_score above: it is the character. After the VAE: 0.51..0.96, the world up to 0.33
)


class Finding(NamedTuple):
    """What was found in an image; empty names where nothing stands out from the border."""

    shape: str
    colour: str
    likeness: float  # 0..1, correlation with the nearest drawing


def identify(image: Image.Image | np.ndarray) -> tuple[str, str]:
    """Shape and colour of the thing in an image: ("circle", "red"). For images of one thing.

    Args:
        image: an RGB image, or (H, W, 3) bytes.
    """
    return examine(image)[:2]


def examine(image: Image.Image | np.ndarray) -> Finding:
    """As `identify`, with how well the shape fits the nearest drawing."""
    found = _foreground(_values(image))
    if found is None:
        return Finding("", "", 0.0)
    mask, colour = found
    points = _normalised([mask], mask)
    likenesses = {shape: max(_correlation(points, one) for one in ones) for shape, ones in _shape_templates().items()}
    shape = max(likenesses, key=likenesses.__getitem__)
    return Finding(shape, colour, max(0.0, likenesses[shape]))


def thing_score(image: Image.Image | np.ndarray, shape: str, colour: str) -> float:
    """How much an image looks like one thing of that shape and colour, 0..1; 0 in another colour."""
    found = _foreground(_values(image))
    if found is None or found[1] != colour:
        return 0.0
    points = _normalised([found[0]], found[0])
    return max(0.0, max(_correlation(points, template) for template in _shape_templates()[shape]))


def character_score(image: Image.Image | np.ndarray) -> float:
    """How much an image looks like the character, 0..1; above CHARACTER_THRESHOLD it is the character."""
    points, teal_share = _character_points(_values(image))
    if points is None:
        return 0.0
    likeness = max(_correlation(points, template) for template in _character_templates())
    return float(max(0.0, likeness) * min(1.0, teal_share / 0.03))


# ---- How ------------------------------------------------------------------------------------------------------------


def _values(image: Image.Image | np.ndarray) -> np.ndarray:
    """(H, W, 3) floats, 0..255."""
    if isinstance(image, Image.Image):
        image = image.convert("RGB")
    return np.asarray(image).astype(np.float32)


def _distance(values: np.ndarray, colour: np.ndarray | Colour) -> np.ndarray:
    return np.sqrt(((values - np.asarray(colour, np.float32)) ** 2).sum(axis=-1))


def _foreground(values: np.ndarray) -> tuple[np.ndarray, str] | None:
    """A soft mask (H, W) of what is not background, and the name of its colour.

    Background is every colour on two sides of the border or more: stripes, dots and gradients too, but not a thing that
    touches one side. Between both a pixel is as much thing as its distances say: the exact share on smooth edges.
    """
    sides = [values[0], values[-1], values[:, 0], values[:, -1]]
    colours = np.unique(np.round(np.concatenate(sides) / 12), axis=0) * 12  # (K, 3)
    support = np.array([sum((_distance(side, colour) < 30).sum() > 1 for side in sides) for colour in colours])
    colours = colours[support >= min(2, support.max())]
    from_background = np.min([_distance(values, colour) for colour in colours], axis=0)  # (H, W)
    certain = from_background > BACKGROUND_DISTANCE
    if certain.sum() < 12:
        return None
    nearest = np.argmin([_distance(values, colour) for colour in COLOURS.values()], axis=0)  # (H, W) index of a colour
    votes = np.bincount(nearest[certain], minlength=len(COLOURS))
    winner = int(votes.argmax())
    own = np.median(values[certain & (nearest == winner)], axis=0)
    mask = from_background / (from_background + _distance(values, own) + 1e-6)
    mask = np.where((mask > 0.35) & (from_background > 0.5 * BACKGROUND_DISTANCE), mask, 0.0)
    return mask, list(COLOURS)[winner]


def _normalised(maps: list[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Each map at GRID x GRID points around the mask's centre, spaced by the root of its area. Bilinear, 0 outside."""
    height, width = mask.shape
    area = mask.sum()
    rows, columns = np.arange(height), np.arange(width)
    centre_y, centre_x = (mask.sum(axis=1) @ rows) / area, (mask.sum(axis=0) @ columns) / area
    steps = np.linspace(-REACH, REACH, GRID) * np.sqrt(area)
    y, x = np.meshgrid(centre_y + steps + 1, centre_x + steps + 1, indexing="ij")  # + 1: the frame of zeros below
    y, x = y.clip(0, height + 0.999), x.clip(0, width + 0.999)
    top, left = y.astype(int), x.astype(int)
    down, right = y - top, x - left
    found = []
    for one in maps:
        framed = np.pad(one, 1)
        upper = framed[top, left] * (1 - right) + framed[top, left + 1] * right
        lower = framed[top + 1, left] * (1 - right) + framed[top + 1, left + 1] * right
        found.append(upper * (1 - down) + lower * down)
    return np.stack(found)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    return float((first * second).sum() / (np.linalg.norm(first) * np.linalg.norm(second) + 1e-6))


@lru_cache(maxsize=1)
def _shape_templates() -> dict[str, list[np.ndarray]]:
    templates = {}
    for shape in SHAPES:
        images = [_values(draw(Scene(things=(Thing(shape, "blue", size),)))) for size in SIZES]
        foregrounds = [_foreground(values) for values in images]
        templates[shape] = [_normalised([found[0]], found[0]) for found in foregrounds if found is not None]
    return templates


def _character_points(values: np.ndarray) -> tuple[np.ndarray | None, float]:
    """Where teal and orange are, seen from the middle of the teal; and the teal's share of the image.

    By hue, not by distance, and on a coarse grid: a VAE that has never seen the character blurs and fades it.
    """
    red, green, blue = np.moveaxis(values, -1, 0)  # each (H, W)
    teal = ((np.minimum(green, blue) - red) / 100).clip(0, 1) * (1 - abs(green - blue) / 90).clip(0, 1)
    orange = ((red - blue) / 150).clip(0, 1) * (1 - abs(green - (red + blue) / 2) / 60).clip(0, 1)
    teal = np.where(teal > 0.25, teal, 0.0)
    if teal.sum() < 8:
        return None, 0.0
    points = _normalised([teal, orange], teal)  # (2, GRID, GRID)
    return points.reshape(2, GRID // 3, 3, GRID // 3, 3).mean(axis=(2, 4)), float(teal.mean())


@lru_cache(maxsize=1)
def _character_templates() -> list[np.ndarray]:
    scenes = [CharacterScene(pose, size=size) for pose in POSES for size in SIZES]
    points = [_character_points(_values(draw_character(scene)))[0] for scene in scenes]
    return [each for each in points if each is not None]
