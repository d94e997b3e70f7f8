"""Does deleting a tag move its feature to the trigger word, and does keeping it keep generality?

A character with red hair and a green shirt is learnt from faces and full bodies, once with all tags and once without
"red hair" and "green shirt". Everything else about the images differs at random and is in both captions.
"""

import random
from functools import partial
from pathlib import Path
from statistics import mean

from tests.laboratory.experiment import Claim, Comparison, Images, Training
from tests.laboratory.eyes import see
from tests.laboratory.people import asked, described, person, write

TAGS = ("red hair", "green shirt")


def make_set(folder: Path, rng: random.Random, deleted: tuple[str, ...] = ()) -> None:
    scenes = [
        person(rng, hair_colour="red", garment="shirt", garment_colour="green", framing=framing)
        for framing in ("face", "full body") * 6
    ]
    write(folder / "train" / "10_mytag", scenes, [described(scene, deleted) for scene in scenes])


def measure(drawn: dict[str, Images]) -> dict[str, float]:
    """Shares of images that show the character's feature, or the other colour that was asked for."""

    def hair(question: str, colour: str) -> float:
        return mean(see(image).hair == colour for image in drawn[f"face, {question}"])

    def shirt(question: str, colour: str) -> float:
        return mean(see(image).garment_colour == colour for image in drawn[f"body, {question}"])

    return {
        "trigger alone: red hair": hair("alone", "red"),
        "all tags: red hair": hair("all tags", "red"),
        "blonde asked: blonde": hair("other", "blonde"),
        "trigger alone: green shirt": shirt("alone", "green"),
        "all tags: green shirt": shirt("all tags", "green"),
        "yellow asked: yellow": shirt("other", "yellow"),
    }


def expected(feature: str, variant: str) -> list[Comparison]:
    return [
        Comparison(
            f"the trigger word alone brings the {feature} more often if its tag was deleted",
            ("tags deleted", f"trigger alone: {feature}"), "more", ("tags kept", f"trigger alone: {feature}"),
        ),
        Comparison(
            f"{variant} is obeyed more often if the tag was kept",
            ("tags kept", f"{variant} asked: {variant}"), "more", ("tags deleted", f"{variant} asked: {variant}"),
        ),
        Comparison(
            f"{variant} is obeyed more often if the tag was kept than if it was deleted and learnt at 4 times the rate",
            ("tags kept", f"{variant} asked: {variant}"), "more", ("deleted, 4 x rate", f"{variant} asked: {variant}"),
        ),
        Comparison(
            f"kept tags, all typed, bring the {feature} as surely as the trigger word alone after deleting",
            ("tags kept", f"all tags: {feature}"), "same", ("tags deleted", f"trigger alone: {feature}"),
        ),
    ]  # fmt: skip


CLAIM = Claim(
    title="Deleting a tag moves its feature to the trigger word; keeping it keeps generality",
    sentence="手动删去TAG中训练元素相关TAG有利于模型学习到元素特征，但会损害泛化性，不如训练红色头发角色，删去红色头发的TAG，"
    "将无法产生粉色或绿色头发的变体……相反要经可能详细描述图片的所有元素，使用这些TAG仍然可以获得很好的角色还原，同时保留优秀的泛化性。",
    method="""Twelve pictures, six faces and six full bodies, of a character with red hair and a green shirt; all else
differs from picture to picture. Captions with all tags, or without `red hair` and `green shirt`, these also at four
times the learning rate. Asked for are the trigger word alone, the character with these tags typed, and the character
with blonde hair or a yellow shirt.""",
    trainings={
        "tags kept": Training(make_set),
        "tags deleted": Training(partial(make_set, deleted=TAGS)),
        "deleted, 4 x rate": Training(partial(make_set, deleted=TAGS), dict(learning_rate=2e-3)),
    },
    questions={
        "face, alone": asked("face"),
        "face, all tags": asked("face", "red hair"),
        "face, other": asked("face", "blonde hair") * 2,
        "body, alone": asked("full body"),
        "body, all tags": asked("full body", "green shirt"),
        "body, other": asked("full body", "yellow shirt") * 2,
    },
    measure=measure,
    comparisons=[*expected("red hair", "blonde"), *expected("green shirt", "yellow")],
    shown=[(question, 0) for question in (
        "face, alone", "face, all tags", "face, other", "body, alone", "body, all tags", "body, other",
    )],
)  # fmt: skip
