"""Which epoch to use: known losses in, the right epoch out, and what is needed at the end is never thrown away."""

import random

import pytest

from library.messages import set_language
from library.reporting import best_epoch
from library.reporting.best_epoch import Measurement, difference, epochs_since_lowest, recommend

TIMES = [200, 400, 600, 800]


def validations(curve: list[float], noise: float = 0.0, old: list[float] | None = None, seed: int = 0) -> list:
    """Events of a run: the mean loss of four images after each epoch, of the unchanged model 1; noise of each cell.

    Args:
        old: the mean loss of two regularization images after each epoch, of the unchanged model 0.5.
    """
    rng = random.Random(seed)
    means = [1.0, *curve]
    olds = [0.5, *old] if old else [0.0] * len(means)
    return [
        dict(
            epoch=epoch,
            step=10 * epoch,
            ends_epoch=True,
            timesteps=TIMES,
            rows=dict(
                held_out=[[mean + rng.gauss(0, noise) for _ in TIMES] for _ in range(4)],
                regularization=[[before] * 4] * 2 if old else [],
            ),
        )
        for epoch, (mean, before) in enumerate(zip(means, olds, strict=True))
    ]


def test_a_difference_has_the_standard_error_of_its_mean():
    ours, theirs = [[3.0, 4.0], [5.0, 8.0]], [[1.0, 1.0], [1.0, 3.0]]
    mean, error = difference(Measurement(1, ours, []), Measurement(2, theirs, []))
    assert mean == 3.5  # of 2, 3, 4, 5
    assert error == pytest.approx((5 / 3 / 4) ** 0.5)  # variance 5/3 of four
    mean, error = difference(Measurement(1, ours, [[1.0, 3.0]]), Measurement(2, theirs, [[2.0, 2.0]]))
    assert mean == 3.5 + 0.0  # of -1, 1
    assert error == pytest.approx((5 / 3 / 4 + 2 / 2) ** 0.5)


@pytest.mark.parametrize(
    ("curve", "epoch", "equal", "overfitted_from"),
    [
        ([0.8, 0.6, 0.5, 0.7, 0.9], 3, [3], 4),  # a valley
        ([0.8, 0.6, 0.51, 0.5, 0.505, 0.514, 0.7], 6, [3, 4, 5, 6], 7),  # a flat one: 0.015 is 3 % of what was learnt
        ([0.9, 0.8, 0.7, 0.6, 0.5], 5, [5], None),  # falls to the end
        ([0.7, 0.9, 0.5, 0.9, 0.5], 5, [3, 5], None),  # up and down: it has not stayed up
        ([0.5], 1, [1], None),
    ],
)
def test_without_noise_a_trifle_decides(curve, epoch, equal, overfitted_from):
    found = recommend(validations(curve))
    assert (found.epoch, found.equal, found.overfitted_from) == (epoch, equal, overfitted_from)


def test_what_noise_hides_is_equal():
    curve = [0.8, 0.56, 0.5, 0.5]  # how far 0.56 is from 0.5 no noise of 0.5 in 16 cells lets see
    assert recommend(validations(curve)).equal == [3, 4]
    noisy = [recommend(validations(curve, noise=0.5, seed=seed)).equal for seed in range(40)]
    assert sum(len(equal) > 1 for equal in noisy) > 25
    assert sum(2 in equal for equal in noisy) > 15


def test_old_knowledge_counts_as_much():
    curve = [0.8, 0.503, 0.5, 0.5]
    assert recommend(validations(curve)).epoch == 4
    kept = recommend(validations(curve, old=[0.5, 0.5, 0.5, 0.49]))
    assert (kept.epoch, kept.equal) == (4, [2, 3, 4])
    lost = recommend(validations(curve, old=[0.5, 0.6, 0.8, 1.0]))
    assert (lost.epoch, lost.equal, lost.overfitted_from) == (2, [2], 3)
    assert "held-out and regularization images" in kept.lines()[0]


def test_a_model_that_learnt_nothing_has_no_margin():
    found = recommend(validations([1.1, 1.2, 1.3]))
    assert (found.epoch, found.equal, found.overfitted_from) == (1, [1], 2)


@pytest.mark.slow("hundreds of made-up runs")
def test_whatever_is_recommended_at_the_end_was_recommended_when_it_was_measured():
    """Or the file of the best epoch, which is written then and only then, would hold another."""
    rng = random.Random(1)
    for seed in range(200):
        curve = [0.5 + rng.random() * 0.5 for _ in range(8)]
        events = validations(curve, noise=rng.choice([0.0, 0.1, 0.5]), seed=seed)
        kept = None
        for count in range(2, len(events) + 1):
            now = events[count - 1]["epoch"]
            kept = now if recommend(events[:count]).epoch == now else kept
            assert kept == recommend(events[:count]).epoch


def test_measurements_between_epochs_and_of_other_images_do_not_count():
    events = validations([0.8, 0.5, 0.6])
    events.insert(
        2, events[1] | dict(step=15, ends_epoch=False, rows=events[1]["rows"] | dict(held_out=[[0.1] * 4] * 4))
    )
    assert recommend(events).epochs == [1, 2, 3]
    assert recommend(events).epoch == 2
    other = [event | dict(rows=event["rows"] | dict(held_out=[[0.1] * 4])) for event in validations([0.1])]
    assert recommend([*other, *events]).epochs == [1, 2, 3]
    assert recommend(events[1:]).epoch == 2  # the unchanged model was not measured
    assert recommend([]) is None
    assert recommend(events[:1]) is None


def test_patience_counts_from_the_lowest():
    assert epochs_since_lowest(validations([0.8, 0.5, 0.6, 0.7])) == 2
    assert epochs_since_lowest(validations([0.8, 0.5, 0.6, 0.4])) == 0
    assert epochs_since_lowest([]) == 0


def test_the_words():
    assert best_epoch.spans([1, 3, 4, 5, 8]) == "1, 3-5, 8"
    lines = recommend(validations([0.8, 0.51, 0.5, 0.7])).lines()
    assert lines[0].startswith(
        "Use epoch 3: no other epoch has a clearly lower loss on held-out images. Epochs 2-3 can't be"
    )
    assert "It overfits from epoch 4 on" in lines[1]
    assert "4 held-out images" in lines[-1]
    assert "more epochs may help" in recommend(validations([0.8, 0.5])).lines()[1]
    assert "nothing to compare" in recommend(validations([0.5])).lines()[0]
    set_language("zh")
    assert recommend(validations([0.8, 0.51, 0.5, 0.7])).lines()[0].startswith("建议使用第 3 轮")
