"""Do regularization images keep old knowledge, what do they cost the concept, and do they need tags?"""

from functools import partial

from tests.laboratory.character import QUESTIONS, SHOWN, make_set, measure
from tests.laboratory.experiment import Claim, Comparison, Training

RATE = dict(learning_rate=1.5e-3)
STEPS, LONG = 100, 600  # without regularization images, which double them
with_regularization = partial(make_set, with_regularization=True)

CLAIM = Claim(
    title="Regularization pictures keep old knowledge",
    sentence="可以显著改善过拟合…… [正则化图片] 不需要打TAG……不需要有tag文件！——你做了也会被忽略。",
    method="""The character is trained alone, and beside the miniature's own regularization pictures, which the base
model drew from tags of its own world. Both see the character equally often, so the latter takes twice the steps: 100
and 200, *long* 600 and 1,200; and one sees it alone for as many steps as the latter takes. With tags each
regularization picture has the caption that it was drawn from; without, only its folder's word
(`reg_captions = False`), as in the text and in sd-scripts.""",
    trainings={
        "without": Training(make_set, RATE | dict(max_train_steps=STEPS)),
        "without, twice as long": Training(make_set, RATE | dict(max_train_steps=2 * STEPS)),
        "with, tagged": Training(with_regularization, RATE | dict(max_train_steps=2 * STEPS)),
        "with, not tagged": Training(with_regularization, RATE | dict(max_train_steps=2 * STEPS, reg_captions=False)),
        "with, weight 0.3": Training(
            with_regularization, RATE | dict(max_train_steps=2 * STEPS, prior_loss_weight=0.3)
        ),
        "long, without": Training(make_set, RATE | dict(max_train_steps=LONG)),
        "long, with, tagged": Training(with_regularization, RATE | dict(max_train_steps=2 * LONG)),
    },
    questions=QUESTIONS,
    measure=measure,
    sampling_steps=10,
    comparisons=[
        Comparison("they keep old words", ("with, tagged", "prior"), "more", ("without", "prior")),
        Comparison(
            "with them the character appears less often where its word is not said",
            ("with, tagged", "leak"), "less", ("without", "leak"),
        ),
        Comparison("they cost nothing of the concept", ("with, tagged", "concept"), "same", ("without", "concept")),
        Comparison(
            "they keep old words though the training takes twice as long",
            ("with, tagged", "prior"), "more", ("without, twice as long", "prior"),
        ),
        Comparison(
            "they keep old words in a long training",
            ("long, with, tagged", "prior"), "more", ("long, without", "prior"),
        ),
        Comparison(
            "and cost nothing of the concept there",
            ("long, with, tagged", "concept"), "same", ("long, without", "concept"),
        ),
        Comparison(
            "without tags they keep as much as with tags",
            ("with, not tagged", "prior"), "same", ("with, tagged", "prior"),
        ),
        Comparison(
            "at weight 0.3 they keep less than at 1", ("with, weight 0.3", "prior"), "less", ("with, tagged", "prior")
        ),
    ],
    shown=SHOWN,
)  # fmt: skip
