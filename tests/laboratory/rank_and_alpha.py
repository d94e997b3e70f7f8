"""What do rank and alpha decide?"""

from tests.laboratory.character import OF_VIRTUES, SHOWN_OF_VIRTUES, make_set, measure
from tests.laboratory.experiment import Claim, Comparison, Training


def sized(rank: int, alpha: float) -> Training:
    return Training(make_set, dict(network_dim=rank, network_alpha=float(alpha), learning_rate=1e-3))


CLAIM = Claim(
    title="Rank 32 with alpha 32 is enough",
    sentence="100张的话32M足够了，不需要改成128M的。dim参数就32/32 就行了，学习率默认。",
    method="""The character is trained alone for 150 steps with the same rate at three ranks, alpha as large as the
rank, and at rank 16 with an alpha of 1. The miniature's layers are 64 to 128 wide, so its 16 is what 80 would be in
Stable Diffusion 1.5.""",
    trainings={
        "rank 4": sized(4, 4),
        "rank 16": sized(16, 16),
        "rank 64": sized(64, 64),
        "rank 16, alpha 1": sized(16, 1),
    },
    questions=OF_VIRTUES,
    measure=measure,
    sampling_steps=10,
    comparisons=[
        Comparison("rank 4 learns as much of the concept as 16", ("rank 4", "concept"), "same", ("rank 16", "concept")),
        Comparison("rank 64 scores no higher than 16", ("rank 64", "score"), "same", ("rank 16", "score")),
        Comparison("rank 64 forgets more than 4", ("rank 64", "prior"), "less", ("rank 4", "prior")),
        Comparison("alpha 1 learns less of it", ("rank 16, alpha 1", "concept"), "less", ("rank 16", "concept")),
    ],
    shown=SHOWN_OF_VIRTUES,
)  # fmt: skip
