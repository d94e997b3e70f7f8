"""Do face cut-outs with full bodies as regularization keep a person's proportions?

A person with blonde hair is learnt, its hair's tag deleted: from faces alone; from faces with full bodies as
regularization images of the same concept without captions, as the user's text says; from captioned full bodies alone.
Captions of faces tell what is in the face and not that it is one, as a tagger does.
"""

import random
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np

from library.miniature.drawings import Person, Scene, draw
from tests.laboratory.experiment import BASE, Claim, Comparison, Images, Training
from tests.laboratory.eyes import head_share, see
from tests.laboratory.people import BACKGROUNDS, asked, described, person, write

CLOTHES = ("blue shirt", "yellow skirt")
RATE = dict(learning_rate=1e-3)
TWICE = RATE | dict(max_train_steps=300)  # half of what is seen are regularization images


def make_set(folder: Path, rng: random.Random, framing: str, bodies: str | None = None) -> None:
    """Twelve images of the person, and its own bodies, others' or none for regularization."""
    scenes = [person(rng, hair_colour="blonde", framing=framing) for _ in range(12)]
    write(folder / "train" / "10_mytag", scenes, [described(scene, ("blonde hair", "face")) for scene in scenes])
    if bodies:
        colours = ("blonde",) if bodies == "own" else ("black", "brown", "red")
        whole = [person(rng, hair_colour=rng.choice(colours), framing="full body") for _ in range(12)]
        write(folder / "reg" / "5_mytag", whole, [None] * len(whole))


def face_distance(image: np.ndarray, background: str) -> float:
    """From the drawing of the person's face, 0 to 1."""
    wanted = Person("blonde", "short hair", "shirt", "red", "short sleeves", "skirt", "red", "", "face")
    return float(abs(image.astype(float) - np.asarray(draw(Scene(background, person=wanted)))).mean() / 255)


def measure(drawn: dict[str, Images]) -> dict[str, float]:
    """Shares of images with a full body and the person's hair; sizes of heads; faces."""
    seen = {question: [see(image) for image in images] for question, images in drawn.items()}
    return {
        "clothes asked: full body": mean(one.framing == "full body" for one in seen["clothes"]),
        "clothes asked: blonde": mean(one.hair == "blonde" for one in seen["clothes"]),
        "full body asked: full body": mean(one.framing == "full body" for one in seen["full body"]),
        "head / height": mean(head_share(image, "blue") for image in drawn["full body"]),
        "full body asked: blonde": mean(one.hair == "blonde" for one in seen["full body"]),
        "face: distance": mean(map(face_distance, drawn["face"], BACKGROUNDS)),
    }


CUTOUTS, OWN, OTHERS, WHOLE = "face cut-outs alone", "with own bodies", "with others' bodies", "full bodies alone"
CLAIM = Claim(
    title="Face cut-outs need full bodies as regularization to keep proportions",
    sentence="脸部扣下来单独训练会无法产生全身照，或者是身体的比例不对。为了解决这个问题，引入了reg(正则化方法)…… "
    "还是自己的头搭配自己的身体最合适。",
    method="""A person with blonde hair, whose tag is deleted. Twelve faces alone, whose captions tell what is in the
face and not `face`; the same with twelve full bodies of the same person, or of others, as regularization pictures of
the same concept without captions (twice the steps, so that faces are seen as often); twelve captioned full bodies.
Asked for are the person in a blue shirt and a yellow skirt, the same with `full body`, and the face.
*Head / height* is the part of the figure above the shirt (0.32 in drawings; 1: no body); *distance* how far a face is
from the drawing of it.""",
    limits="All persons of the miniature's world have the same proportions, so it cannot tell whether another person's "
    "body would fit worse, only whose hair comes with it. It knows few framings, and draws `mytag, person` as a face "
    "before any training, so only prompts that name clothes or a full body can tell of bodies.",
    trainings={
        CUTOUTS: Training(partial(make_set, framing="face"), RATE),
        OWN: Training(partial(make_set, framing="face", bodies="own"), TWICE),
        OTHERS: Training(partial(make_set, framing="face", bodies="others"), TWICE),
        WHOLE: Training(partial(make_set, framing="full body"), RATE),
    },
    questions={
        "clothes": asked(*CLOTHES) * 2,
        "full body": asked("full body", *CLOTHES) * 2,
        "face": asked("face", "short hair"),
    },
    measure=measure,
    comparisons=[
        Comparison(
            "asked for clothes, face cut-outs alone give a full body less often than with own bodies",
            (CUTOUTS, "clothes asked: full body"), "less", (OWN, "clothes asked: full body"),
        ),
        Comparison(
            "asked for clothes, own bodies bring the person's hair more often than face cut-outs alone",
            (OWN, "clothes asked: blonde"), "more", (CUTOUTS, "clothes asked: blonde"),
        ),
        Comparison(
            "asked for `full body`, face cut-outs alone give one less often than with own bodies",
            (CUTOUTS, "full body asked: full body"), "less", (OWN, "full body asked: full body"),
        ),
        Comparison(
            "asked for `full body`, the head is larger after face cut-outs alone than with own bodies",
            (CUTOUTS, "head / height"), "more", (OWN, "head / height"), margin=0.03,
        ),
        Comparison(
            "with own bodies the head is as large as the base model's",
            (OWN, "head / height"), "same", (BASE, "head / height"), margin=0.03,
        ),
        Comparison(
            "faces are better from cut-outs with own bodies than from full bodies alone",
            (OWN, "face: distance"), "less", (WHOLE, "face: distance"), margin=0.01,
        ),
        Comparison(
            "asked for clothes, own bodies bring the person's hair more often than others' bodies",
            (OWN, "clothes asked: blonde"), "more", (OTHERS, "clothes asked: blonde"),
        ),
    ],
    shown=[(question, index) for question in ("clothes", "full body") for index in (0, 2, 3)] + [("face", 0)],
)  # fmt: skip
