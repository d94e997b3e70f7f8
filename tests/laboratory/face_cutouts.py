"""Do face cut-outs with full bodies as regularization keep a person's proportions?

A person with red hair is learnt, its hair's tag deleted: from faces alone; from faces with full bodies as
regularization pictures of the same concept without captions, as the user's text says; from captioned full bodies alone.
"""

import random
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np

from library.miniature.drawings import Person, Scene, draw
from tests.laboratory.experiment import BASE, Claim, Comparison, Pictures, Training
from tests.laboratory.eyes import head_share, see
from tests.laboratory.people import BACKGROUNDS, asked, described, person, write

TWICE = dict(max_train_steps=300)  # half of what is seen are regularization pictures


def make_set(folder: Path, rng: random.Random, framing: str, bodies: str | None = None) -> None:
    """Twelve pictures of the person, and its own bodies, others' or none for regularization."""
    scenes = [person(rng, hair_colour="red", framing=framing) for _ in range(12)]
    write(folder / "train" / "10_mytag", scenes, [described(scene, ("red hair",)) for scene in scenes])
    if bodies:
        colours = ("red",) if bodies == "own" else ("black", "brown", "blonde")
        whole = [person(rng, hair_colour=rng.choice(colours), framing="full body") for _ in range(12)]
        write(folder / "reg" / "5_mytag", whole, [None] * len(whole))


def face_distance(picture: np.ndarray, background: str) -> float:
    """From the drawing of the person's face, 0 to 1."""
    wanted = Person("red", "short hair", "shirt", "red", "short sleeves", "skirt", "red", "", "face")
    return float(abs(picture.astype(float) - np.asarray(draw(Scene(background, person=wanted)))).mean() / 255)


def measure(drawn: dict[str, Pictures]) -> dict[str, float]:
    bodies = [see(picture) for picture in drawn["body"]]
    return {
        "full body asked: full body": mean(seen.framing == "full body" for seen in bodies),
        "head / height": mean(head_share(picture, "blue") for picture in drawn["body"]),
        "full body asked: red hair": mean(seen.hair == "red" for seen in bodies),
        "trigger alone: full body": mean(see(picture).framing == "full body" for picture in drawn["alone"]),
        "face: distance": mean(map(face_distance, drawn["face"], BACKGROUNDS)),
    }


CUTOUTS, OWN, OTHERS, WHOLE = "face cut-outs alone", "with own bodies", "with others' bodies", "full bodies alone"
CLAIM = Claim(
    title="Face cut-outs need full bodies as regularization to keep proportions",
    sentence="脸部扣下来单独训练会无法产生全身照，或者是身体的比例不对。为了解决这个问题，引入了reg(正则化方法)…… "
    "还是自己的头搭配自己的身体最合适。",
    method="""A person with red hair, whose tag is deleted. Twelve captioned faces alone; the same with twelve full
bodies of the same person, or of others, as regularization pictures of the same concept without captions (twice the
steps, so that faces are seen as often); twelve captioned full bodies alone. Asked for are full bodies in a blue shirt,
the trigger word alone, and faces. *Head / height* is the part of the figure above the shirt (0.32 in drawings; 1: no
body); *distance* how far a face is from the drawing of it.""",
    limits="All persons of the miniature's world have the same proportions, so it cannot tell whether another person's "
    "body would fit worse, only whose hair comes with it.",
    trainings={
        CUTOUTS: Training(partial(make_set, framing="face")),
        OWN: Training(partial(make_set, framing="face", bodies="own"), TWICE),
        OTHERS: Training(partial(make_set, framing="face", bodies="others"), TWICE),
        WHOLE: Training(partial(make_set, framing="full body")),
    },
    questions={
        "body": asked("full body", "blue shirt", "yellow skirt") * 2,
        "alone": [f"mytag, {background} background" for background in BACKGROUNDS],
        "face": asked("face", "short hair"),
    },
    measure=measure,
    comparisons=[
        Comparison(
            "asked for a full body, face cut-outs alone give one less often than with own bodies",
            (CUTOUTS, "full body asked: full body"), "less", (OWN, "full body asked: full body"),
        ),
        Comparison(
            "after face cut-outs alone the head is larger than with own bodies",
            (CUTOUTS, "head / height"), "more", (OWN, "head / height"), margin=0.03,
        ),
        Comparison(
            "with own bodies the head is as large as the base model's",
            (OWN, "head / height"), "same", (BASE, "head / height"), margin=0.03,
        ),
        Comparison(
            "the trigger word alone gives full bodies more often with own bodies than from cut-outs alone",
            (OWN, "trigger alone: full body"), "more", (CUTOUTS, "trigger alone: full body"),
        ),
        Comparison(
            "faces are better from cut-outs with own bodies than from full bodies alone",
            (OWN, "face: distance"), "less", (WHOLE, "face: distance"), margin=0.01,
        ),
        Comparison(
            "full bodies have the person's hair more often with own bodies than with others'",
            (OWN, "full body asked: red hair"), "more", (OTHERS, "full body asked: red hair"),
        ),
    ],
    shown=[("body", 0), ("body", 2), ("body", 3), ("alone", 0), ("alone", 2), ("face", 0), ("face", 2)],
)  # fmt: skip
