"""Are areas that were erased to white not learnt, and do masks keep them from being learnt?

The built-in character is trained on images of which a part was erased to white, as a person deletes what does not
belong there; captions say what was there before. Then it is asked for on coloured backgrounds.
"""

import random
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np
from PIL import Image

from library.data.folders import MASKS
from library.miniature.drawings import POSES, CharacterScene, character_caption, draw_character
from tests.laboratory.experiment import Claim, Comparison, Images, Training

SIDE = 64  # pixels
BOX = (2, 10, 42, 58)  # around the character, which stands on the left: left, top, right, bottom
COLOURS = ("gray", "blue", "green", "pink")  # of backgrounds; black is left out: the miniature's LoRA loses the teal
WHITE = 232  # all channels above: white. The palest of the backgrounds has 205 in its darkest channel
SCENES = [CharacterScene(pose, "left", "", colour) for pose in POSES[:3] for colour in COLOURS]  # that are asked for


def erased_place(kind: str) -> np.ndarray:
    """(SIDE, SIDE) bool: "edge", the right third, as the frame of a mirror; "around" all but the character's box."""
    left, top, right, bottom = BOX
    columns, rows = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    inside = (left <= columns) & (columns < right) & (top <= rows) & (rows < bottom)
    return {"edge": columns >= right, "around": ~inside}[kind]


def make_set(folder: Path, rng: random.Random, kind: str | None = None, is_masked: bool = False) -> None:
    """Twelve images of the character with captions, and masks where something is erased."""
    place = folder / "train" / "10_mytag"
    (place / MASKS).mkdir(parents=True)
    for index in range(12):
        pattern = ("plain", "plain", "striped", "dotted")[index // 2 % 4]
        jitter = (rng.uniform(-1, 1), rng.uniform(-1, 1))
        scene = CharacterScene(POSES[index % len(POSES)], "left", "", COLOURS[index % len(COLOURS)], pattern, jitter)
        image = np.array(draw_character(scene, (SIDE, SIDE)))
        (place / f"{index}.txt").write_text(character_caption(scene), encoding="utf-8")
        if kind:
            where = erased_place(kind)
            image[where] = 255
            if is_masked:
                Image.fromarray(np.where(where, 0, 255).astype(np.uint8)).save(place / MASKS / f"{index}.png")
        Image.fromarray(image).save(place / f"{index}.png")


def measure(drawn: dict[str, Images]) -> dict[str, float]:
    """White shares of the two places, 0 to 1; distance from the drawing asked for in the character's box, 0 to 1."""
    left, top, right, bottom = BOX
    images = drawn["the character"]

    def white(kind: str) -> float:
        return mean(float((image[erased_place(kind)].min(axis=-1) > WHITE).mean()) for image in images)

    def distance(image: np.ndarray, scene: CharacterScene) -> float:
        wanted = np.asarray(draw_character(scene, (SIDE, SIDE))).astype(float)
        return float(abs(image - wanted)[top:bottom, left:right].mean() / 255)

    return {
        "white right third": white("edge"),
        "white around": white("around"),
        "distance": mean(distance(image, scene) for image, scene in zip(images, SCENES, strict=True)),
    }


CLAIM = Claim(
    title="White areas are not learnt",
    sentence="可以抠图，也可以直接硬删除区域，机器不会学习白色的区域。",
    method="""The character is trained on 12 pictures whose right third, or all but the character's box, was erased
to white; captions go on saying "blue background" and the like. Beside them the same pictures unharmed, and those with
masks over the erased part. Then it is asked for on coloured backgrounds. *White* is the share of white pixels in the
place that had been erased; *distance* is how far the character's box is from the drawing asked for (1: black against
white).""",
    trainings={
        "unharmed": Training(make_set),
        "right third erased": Training(partial(make_set, kind="edge")),
        "around erased": Training(partial(make_set, kind="around")),
        "around masked": Training(partial(make_set, kind="around", is_masked=True)),
    },
    questions={"the character": [character_caption(scene) for scene in SCENES]},
    measure=measure,
    comparisons=[
        Comparison(
            "after pictures with an erased third, that third is no whiter than after whole pictures",
            ("right third erased", "white right third"), "same", ("unharmed", "white right third"),
        ),
        Comparison(
            "after cut-outs on white, the surroundings are no whiter than after whole pictures",
            ("around erased", "white around"), "same", ("unharmed", "white around"),
        ),
        Comparison(
            "masks keep the white from being learnt",
            ("around masked", "white around"), "less", ("around erased", "white around"),
        ),
        Comparison(
            "with masks the character is learnt as well as from whole pictures",
            ("around masked", "distance"), "same", ("unharmed", "distance"), margin=0.03,
        ),
    ],
    shown=[("the character", index) for index in (1, 2, 3, 5, 6, 7)],
)  # fmt: skip
