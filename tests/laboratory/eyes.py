"""Tells what an image of a person shows: framing, hair, garment, sleeves, legwear, hat, background. numpy only.

Every figure of the miniature's world is made of flat regions (background, skin, hair, garment, legwear, hat, dark) in a
few hundred arrangements. For each arrangement the best colour of every region is found by itself, and the arrangement
whose drawing is nearest to the image is what is seen. Right answers on drawings, before and after the VAE: see
`tests/test_laboratory.py`.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from library.miniature.drawings import BACKGROUNDS, COLOURS, DARK, HAIR, SKIN, Person, Scene, draw

SHARPEST = 150.0  # RGB distance beyond which a pixel is simply wrong: a spot must not outweigh a sleeve
REGIONS = {  # -> the colours that it can have
    "background": BACKGROUNDS,
    "skin": {"skin": SKIN},
    "hair": HAIR,
    "garment": COLOURS,
    "legwear": COLOURS,
    "hat": COLOURS,
    "dark": {"dark": DARK},
}
PAINTED = ("white", "skin", "brown", "green", "blue", "purple", "dark")  # by which regions are told in a drawing
PALETTE = np.array([colour for colours in REGIONS.values() for colour in colours.values()], np.float32)  # (C, 3)
OUTFITS = (("shirt", "trousers"), ("shirt", "skirt"), ("dress", ""))


class Seen(NamedTuple):
    """What an image of a person shows; "" for what cannot be seen in this framing."""

    framing: str
    hair: str
    hair_length: str
    garment: str
    garment_colour: str
    sleeves: str
    legwear: str
    legwear_colour: str
    hat: str  # its colour; "" without
    background: str
    misfit: float  # RGB distance from the nearest drawing, mean over pixels


class _Arrangement(NamedTuple):
    framing: str
    hair_length: str
    outfit: tuple[str, str]
    sleeves: str
    has_hat: bool


def see(image: np.ndarray) -> Seen:
    """What is in an image (H, W, 3) of one person before a plain background; any side from 48 to 80 pixels."""
    height, width = image.shape[:2]
    arrangements, regions = _templates((width, height))
    pixels = image.reshape(-1, 1, 3).astype(np.float32)
    distances = np.sqrt(((pixels - PALETTE) ** 2).sum(axis=-1)).clip(max=SHARPEST)  # (P, C)
    costs = (regions.reshape(-1, regions.shape[-1]) @ distances).reshape(*regions.shape[:2], -1)  # (T, R, C)
    total, chosen, start = np.zeros(len(arrangements)), {}, 0
    for index, (region, colours) in enumerate(REGIONS.items()):
        own = costs[:, index, start : start + len(colours)]
        chosen[region] = own.argmin(axis=1)
        total += own.min(axis=1)
        start += len(colours)
    best = int(total.argmin())
    found = arrangements[best]
    colour = {region: list(REGIONS[region])[chosen[region][best]] for region in REGIONS}
    is_face, (garment, legwear) = found.framing == "face", found.outfit
    return Seen(
        framing=found.framing,
        hair=colour["hair"],
        hair_length=found.hair_length,
        garment="" if is_face else garment,
        garment_colour="" if is_face else colour["garment"],
        sleeves="" if is_face else found.sleeves,
        legwear="" if is_face else legwear,
        legwear_colour=colour["legwear"] if legwear and not is_face else "",
        hat=colour["hat"] if found.has_hat else "",
        background=colour["background"],
        misfit=float(total[best] / (height * width)),
    )


@lru_cache(maxsize=4)
def _templates(size: tuple[int, int]) -> tuple[list[_Arrangement], np.ndarray]:
    """Every arrangement, a little moved to the sides, and (T, R, P) float32: the pixels of each region."""
    arrangements, regions = [], []
    painted = np.array([REGIONS[region][name] for region, name in zip(REGIONS, PAINTED, strict=True)], np.float32)
    for framing in ("full body", "upper body", "face"):
        outfits = OUTFITS if framing != "face" else OUTFITS[:1]
        all_sleeves = ("short sleeves", "long sleeves") if framing != "face" else ("short sleeves",)
        positions = ("left", "center", "right") if framing == "full body" else ("center",)
        kinds = product(("short hair", "long hair"), outfits, all_sleeves, (False, True), positions, (-0.7, 0.0, 0.7))
        for hair_length, (garment, legwear), sleeves, has_hat, position, shift in kinds:
            person = Person(
                "brown", hair_length, garment, "green", sleeves, legwear, "blue" if legwear else "",
                "purple" if has_hat else "", framing, position, (shift, 0.0),
            )  # fmt: skip
            pixels = np.asarray(draw(Scene("white", person=person), size)).reshape(-1, 1, 3).astype(np.float32)
            nearest = ((pixels - painted) ** 2).sum(axis=-1).argmin(axis=1)  # (P,) index of a region
            arrangements.append(_Arrangement(framing, hair_length, (garment, legwear), sleeves, has_hat))
            regions.append(np.eye(len(REGIONS), dtype=np.float32)[nearest].T)
    return arrangements, np.stack(regions)


def head_share(image: np.ndarray, garment_colour: str) -> float:
    """The part of a figure's height that lies above its garment, 0 to 1; 1 where no garment is seen.

    Args:
        image: (H, W, 3), one full body before a plain background.
    """
    values = image.astype(np.float32)
    border = np.median(np.concatenate([values[:, 0], values[:, -1]]), axis=0)  # left and right: the figure reaches none
    figure = np.sqrt(((values - border) ** 2).sum(axis=-1)) > 60
    distances = np.sqrt(((values[..., None, :] - PALETTE) ** 2).sum(axis=-1))  # (H, W, C)
    wanted = np.asarray(COLOURS[garment_colour], np.float32)
    nearest = PALETTE[distances.argmin(axis=-1)]  # (H, W, 3)
    garment = figure & (nearest == wanted).all(axis=-1)
    figure_rows, garment_rows = np.flatnonzero(figure.sum(axis=1) > 2), np.flatnonzero(garment.sum(axis=1) > 2)
    if not len(garment_rows):
        return 1.0
    return float((garment_rows[0] - figure_rows[0]) / (figure_rows[-1] - figure_rows[0] + 1))
