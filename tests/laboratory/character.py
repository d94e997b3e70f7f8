"""The built-in character as the subject of claims: its images, what is asked for, and what makes a good LoRA of it.

Three virtues, each 0 to 1: *concept*, how much images of the trigger word look like the character; *obedience*,
whether their background and side are those asked for; *prior*, how much images of old words, without the trigger
word, look like the shape and colour asked for. *Score* is their mean. Besides, a vice: *leak*, the share of images of
the character's other tags, without the trigger word, that show the character all the same.
"""

import random
import shutil
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from statistics import mean

import numpy as np

from library.miniature import REGULARIZATION_FOLDER
from library.miniature.checker import CHARACTER_THRESHOLD, character_score, thing_score
from library.miniature.drawings import (
    BACKGROUNDS,
    POSES,
    CharacterScene,
    caption,
    character_caption,
    draw_character,
    random_scene,
)
from tests.laboratory.experiment import Images

COLOURS = ("white", "gray", "blue", "green", "pink")  # black is left out: the miniature's LoRA loses the teal
LIKE = 0.6  # character_score of a good image: drawings have 0.51 to 0.96 after the VAE
SIDES = ("left", "center", "right")
WANTED = [CharacterScene(pose, side, "", colour) for colour, pose, side in product(COLOURS, POSES, SIDES)]
OLD = [random_scene(random.Random(seed), person_share=0, pair_share=0) for seed in range(len(WANTED))]
SUBJECT_PROMPTS = [character_caption(scene) for scene in WANTED]
OLD_PROMPTS = [caption(scene) for scene in OLD]
WORDLESS_PROMPTS = [prompt.partition(", ")[2] for prompt in SUBJECT_PROMPTS]
OF_VIRTUES = {"subject": SUBJECT_PROMPTS, "old words": OLD_PROMPTS}
QUESTIONS = OF_VIRTUES | {"without the word": WORDLESS_PROMPTS}
SHOWN_OF_VIRTUES = [
    ("subject", 0),
    ("subject", 29),
    ("subject", 40),
    ("subject", 67),
    ("old words", 1),
    ("old words", 2),
]
SHOWN = [*SHOWN_OF_VIRTUES, ("without the word", 29)]


def random_character(rng: random.Random) -> CharacterScene:
    size = rng.choice(("", "small", "large"))
    position = "center" if size == "large" else rng.choice(SIDES)
    pattern = rng.choice(("plain", "plain", "striped", "dotted"))
    jitter = (rng.uniform(-1, 1), rng.uniform(-1, 1))
    return CharacterScene(rng.choice(POSES), position, size, rng.choice(COLOURS), pattern, jitter)


def make_set(
    folder: Path, rng: random.Random, repeats: int = 10, with_regularization: bool = False, count: int = 16
) -> None:
    """Images of the character; beside them, if wanted, the miniature's own regularization images."""
    place = folder / "train" / f"{repeats}_mytag"
    place.mkdir(parents=True)
    for index in range(count):
        scene = random_character(rng)
        draw_character(scene).save(place / f"{index:02}.png")
        (place / f"{index:02}.txt").write_text(character_caption(scene), encoding="utf-8")
    if with_regularization:
        shutil.copytree(REGULARIZATION_FOLDER, folder / "reg", ignore=shutil.ignore_patterns(".cache"))


def obeys(image: np.ndarray, scene: CharacterScene) -> float:
    """1: background and side are those asked for; 0.5: one of them."""
    values = image.astype(float)
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    distances = [np.linalg.norm(border - colour, axis=-1) for colour in BACKGROUNDS.values()]
    ground = list(BACKGROUNDS)[np.bincount(np.argmin(distances, axis=0)).argmax()]
    red, green, blue = np.moveaxis(values, -1, 0)
    teal = (np.minimum(green, blue) - red > 40) & (abs(green - blue) < 60)
    place = np.nonzero(teal)[1].mean() / image.shape[1] if teal.any() else -1
    side = "" if place < 0 else "left" if place < 0.43 else "center" if place < 0.57 else "right"
    return ((ground == scene.background) + (side == scene.position)) / 2


def virtues(subject: Images, old: Images) -> dict[str, float]:
    """The three, and their mean.

    Args:
        subject: of SUBJECT_PROMPTS.
        old: of OLD_PROMPTS.
    """
    things = [scene.things[0] for scene in OLD]
    found = {
        "concept": mean(min(1.0, character_score(image) / LIKE) for image in subject),
        "obedience": mean(obeys(image, scene) for image, scene in zip(subject, WANTED, strict=True)),
        "prior": mean(thing_score(image, one.shape, one.colour) for image, one in zip(old, things, strict=True)),
    }
    return found | {"score": mean(found.values())}


def measure(drawn: Mapping[str, Images]) -> dict[str, float]:
    """The virtues, for claims that ask OF_VIRTUES, and the vice, for those that ask QUESTIONS."""
    if "without the word" not in drawn:
        return virtues(drawn["subject"], drawn["old words"])
    leaked = [character_score(image) > CHARACTER_THRESHOLD for image in drawn["without the word"]]
    return virtues(drawn["subject"], drawn["old words"]) | {"leak": mean(leaked)}
