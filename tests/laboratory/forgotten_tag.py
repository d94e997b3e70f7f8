"""Does a tag that was forgotten in the captions keep its feature, so that it must be typed?

An outfit of a green shirt, a blue skirt and a purple hat is learnt; its tags are deleted, but one set still says
"purple hat". The user's text tells this of short sleeves; the miniature draws sleeves right only by chance.
"""

import random
from functools import partial
from pathlib import Path
from statistics import mean

from tests.laboratory.experiment import Claim, Comparison, Images, Training
from tests.laboratory.eyes import see
from tests.laboratory.people import asked, described, person, write

OUTFIT = ("green shirt", "blue skirt", "purple hat")


def make_set(folder: Path, rng: random.Random, deleted: tuple[str, ...]) -> None:
    outfit = dict(garment="shirt", garment_colour="green", legwear="skirt", legwear_colour="blue", hat_colour="purple")
    scenes = [person(rng, framing="full body", **outfit) for _ in range(12)]
    write(folder / "train" / "10_mytag", scenes, [described(scene, deleted) for scene in scenes])


def measure(drawn: dict[str, Images]) -> dict[str, float]:
    """Shares of images with a hat of its colour, and with the shirt's colour."""
    hats = {question: mean(see(image).hat == "purple" for image in images) for question, images in drawn.items()}
    return {
        "trigger alone: hat": hats["alone"],
        "hat typed: hat": hats["typed"],
        "trigger alone: green shirt": mean(see(image).garment_colour == "green" for image in drawn["alone"]),
    }


HAIR = ("black hair", "blonde hair")
CLAIM = Claim(
    title="A tag forgotten in the captions keeps its feature; typing it brings it back",
    sentence="短袖(short sleeves)没被删除掉，因此这套衣服的”短袖”属性，还映射在“short sleeves”里，"
    "而没有映射到“mytag”里…… "
    "解决办法也很简单，“mytag” 前面加上 “short sleeves” 再出图",
    method="""Twelve full bodies in a green shirt, a blue skirt and a purple hat. The tags of the outfit are deleted
from the captions; in one set `purple hat` was forgotten and still stands there. Asked for are the trigger word alone
and the trigger word with `purple hat`, on persons with black and blonde hair.""",
    limits="The text tells this of sleeves; the miniature draws sleeves right in 57 % of pictures, which is chance. A "
    "hat it draws when it is asked for, and never unasked.",
    trainings={
        "tag forgotten": Training(partial(make_set, deleted=OUTFIT[:2])),
        "all deleted": Training(partial(make_set, deleted=OUTFIT)),
    },
    questions={
        "alone": [prompt for hair in HAIR for prompt in asked("full body", hair)],
        "typed": [prompt for hair in HAIR for prompt in asked("full body", hair, "purple hat")],
    },
    measure=measure,
    comparisons=[
        Comparison(
            "forgotten: the trigger word alone brings the hat less often than with its tag typed",
            ("tag forgotten", "trigger alone: hat"), "less", ("tag forgotten", "hat typed: hat"),
        ),
        Comparison(
            "the trigger word alone brings the hat less often if its tag was forgotten than if it was deleted",
            ("tag forgotten", "trigger alone: hat"), "less", ("all deleted", "trigger alone: hat"),
        ),
        Comparison(
            "forgotten and typed, the hat comes as surely as by the trigger word alone after deleting",
            ("tag forgotten", "hat typed: hat"), "same", ("all deleted", "trigger alone: hat"),
        ),
    ],
    shown=[("alone", 0), ("alone", 1), ("alone", 5), ("typed", 0), ("typed", 1), ("typed", 5)],
)  # fmt: skip
