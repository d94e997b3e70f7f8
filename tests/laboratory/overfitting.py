"""Do more steps overfit, and does it matter whether they come of repeats or of epochs?"""

from functools import partial

from tests.laboratory.character import OF_VIRTUES, SHOWN_OF_VIRTUES, make_set, measure
from tests.laboratory.experiment import Claim, Comparison, Lora, Training

RATE = dict(learning_rate=1.5e-3, lr_scheduler="constant")
EPOCH = 40  # steps of an epoch of 10 repeats: 16 images in batches of 4

CLAIM = Claim(
    title="Many repeats and epochs overfit",
    sentence="lora训练非常容易过拟合(epoch 设置为1仍然会产生过拟合，同时元素特征学习的也不好)",
    method="""The character is trained alone at three times the usual rate, held constant, and looked at after 40, 120,
600 and 1,600 steps. A second training makes 120 steps of one epoch of 30 repeats in place of three epochs of 10.""",
    trainings={
        "long": Training(make_set, RATE | dict(max_train_steps=40 * EPOCH, save_every_n_steps=EPOCH)),
        "one epoch": Training(
            partial(make_set, repeats=30), RATE | dict(max_train_steps=None, max_train_epochs=1)
        ),
    },
    conditions={
        "base model": (),
        "40 steps": (Lora("long", 1.0, f"it-step{EPOCH:08}.safetensors"),),
        "120 steps": (Lora("long", 1.0, f"it-step{3 * EPOCH:08}.safetensors"),),
        "120 steps, one epoch": (Lora("one epoch"),),
        "600 steps": (Lora("long", 1.0, f"it-step{15 * EPOCH:08}.safetensors"),),
        "1600 steps": (Lora("long"),),
    },
    questions=OF_VIRTUES,
    measure=measure,
    sampling_steps=10,
    comparisons=[
        Comparison("40 steps know less of the concept", ("40 steps", "concept"), "less", ("120 steps", "concept")),
        Comparison("600 steps forget old words", ("600 steps", "prior"), "less", ("120 steps", "prior")),
        Comparison("1600 steps forget more of them", ("1600 steps", "prior"), "less", ("600 steps", "prior")),
        Comparison("1600 steps obey less", ("1600 steps", "obedience"), "less", ("120 steps", "obedience")),
        Comparison("1600 steps score less", ("1600 steps", "score"), "less", ("120 steps", "score")),
        Comparison("a single epoch's length already forgets", ("40 steps", "prior"), "less", ("base model", "prior")),
        Comparison(
            "three epochs of 10 repeats are one epoch of 30: the score",
            ("120 steps, one epoch", "score"), "same", ("120 steps", "score"),
        ),
    ],
    shown=SHOWN_OF_VIRTUES,
)  # fmt: skip
