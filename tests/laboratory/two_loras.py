"""Do two LoRAs, a person at 0.6 and a garment at 0.5, combine?

One LoRA is of a person with blonde hair, the other of an outfit, a green shirt with a blue skirt; the tags of both are
deleted, each has a trigger word. Drawn with each alone, with both at 0.6 and 0.5, and with both at 1.
"""

import random
from functools import partial
from pathlib import Path
from statistics import mean

from tests.laboratory.experiment import BASE, Claim, Comparison, Images, Lora, Training
from tests.laboratory.eyes import see
from tests.laboratory.people import asked, described, person, write

BLONDE = ("blonde hair",)
OUTFIT = ("green shirt", "blue skirt")


def make_set(folder: Path, rng: random.Random, trigger: str, deleted: tuple[str, ...], **shared: str) -> None:
    scenes = [person(rng, framing="full body", **shared) for _ in range(12)]
    write(folder / "train" / f"10_{trigger}", scenes, [described(scene, deleted, trigger) for scene in scenes])


def measure(drawn: dict[str, Images]) -> dict[str, float]:
    """Shares of images with the person's hair, with the garment, with both; distance from the nearest drawing."""
    seen = [see(image) for image in drawn["both"]]
    has_hair = [one.hair == "blonde" for one in seen]
    has_shirt = [one.garment_colour == "green" for one in seen]
    return {
        "blonde hair": mean(has_hair),
        "green shirt": mean(has_shirt),
        "both": mean(a and b for a, b in zip(has_hair, has_shirt, strict=True)),
        "misfit": mean(one.misfit for one in seen),
    }


BOTH, FULL, PERSON, GARMENT = "person 0.6 + garment 0.5", "both at 1", "person alone", "garment alone"
CLAIM = Claim(
    title="Two LoRAs at 0.6 and 0.5 combine",
    sentence="那么直接出图，别忘了mytag，鲤鱼姐权重0.6，衣服权重0.5……鲤鱼姐成功的穿上了衣服！",
    method="""One LoRA of a person with blonde hair (`mytag`), one of an outfit, a green shirt with a blue skirt
(`zkq`), each from twelve full bodies with the feature's tags deleted. Both trigger words are asked for with each LoRA
alone at strength 1, with both at 0.6 and 0.5, and with both at 1. *Misfit* is the distance from the nearest drawing of
a figure, as a mean over pixels (0 to 150).""",
    trainings={
        "person": Training(
            partial(make_set, trigger="mytag", deleted=BLONDE, hair_colour="blonde")
        ),
        "garment": Training(
            partial(
                make_set, trigger="zkq", deleted=OUTFIT,
                garment="shirt", garment_colour="green", legwear="skirt", legwear_colour="blue",
            )
        ),
    },
    conditions={
        BASE: (),
        PERSON: (Lora("person"),),
        GARMENT: (Lora("garment"),),
        BOTH: (Lora("person", 0.6), Lora("garment", 0.5)),
        FULL: (Lora("person"), Lora("garment")),
    },
    questions={"both": asked("full body", trigger="mytag, zkq") * 3},
    measure=measure,
    comparisons=[
        Comparison(
            "0.6 and 0.5 give the person in the garment more often than the person's LoRA alone",
            (BOTH, "both"), "more", (PERSON, "both"),
        ),
        Comparison(
            "0.6 and 0.5 give the person in the garment more often than the garment's LoRA alone",
            (BOTH, "both"), "more", (GARMENT, "both"),
        ),
        Comparison(
            "at 0.6 the hair comes as surely as at 1 alone",
            (BOTH, "blonde hair"), "same", (PERSON, "blonde hair"),
        ),
        Comparison(
            "at 0.5 the shirt comes as surely as at 1 alone",
            (BOTH, "green shirt"), "same", (GARMENT, "green shirt"),
        ),
        Comparison(
            "0.6 and 0.5 give the person in the garment as often as 1 and 1",
            (BOTH, "both"), "same", (FULL, "both"),
        ),
        Comparison(
            "figures are nearer to drawings at 0.6 and 0.5 than at 1 and 1",
            (BOTH, "misfit"), "less", (FULL, "misfit"), margin=1.0,
        ),
    ],
    shown=[("both", index) for index in range(7)],
)  # fmt: skip
