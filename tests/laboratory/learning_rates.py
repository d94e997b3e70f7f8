"""Should the text encoder be trained, and how fast?"""

from tests.laboratory.character import OF_VIRTUES, SHOWN_OF_VIRTUES, make_set, measure
from tests.laboratory.experiment import Claim, Comparison, Training

RATE = 1e-3


def rated(unet: float, text_encoder: float) -> Training:
    return Training(make_set, dict(learning_rate=RATE, unet_lr=unet, text_encoder_lr=text_encoder))


CLAIM = Claim(
    title="The text encoder's learning rate",
    sentence="学习率默认。",
    method="""The character is trained alone for 150 steps; the U-Net's rate is the same wherever it is trained. The
miniature's text encoder is small and was trained together with its U-Net, so it counts for less than CLIP does.""",
    trainings={
        "both": rated(RATE, RATE),
        "U-Net only": rated(RATE, 0.0),
        "text encoder only": rated(0.0, RATE),
    },
    questions=OF_VIRTUES,
    measure=measure,
    sampling_steps=10,
    comparisons=[
        Comparison(
            "the U-Net alone learns less of the concept than both",
            ("U-Net only", "concept"), "less", ("both", "concept"),
        ),
        Comparison("the U-Net alone keeps more than both", ("U-Net only", "prior"), "more", ("both", "prior")),
        Comparison(
            "the text encoder alone learns far less",
            ("text encoder only", "concept"), "less", ("U-Net only", "concept"), margin=0.2,
        ),
    ],
    shown=SHOWN_OF_VIRTUES,
)  # fmt: skip
