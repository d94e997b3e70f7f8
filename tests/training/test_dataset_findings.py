"""What the captions of a set tell before a run."""

from pathlib import Path

from library.contracts import Sample
from library.options.training import Config
from library.training import dataset_findings


def of_weights(*captions, **options):
    samples = [Sample(Path(f"1_a/{n}.png"), caption, 1, 1, "1_a", 1, False) for n, caption in enumerate(captions)]
    return [finding.line for finding in dataset_findings.of_weights(samples, Config(**options))]


def test_weights_that_are_trained_as_letters_are_told():
    (line,) = of_weights("sks, (red hair:1.2)", "sks, red hair", "sks, [hat], mash (arknights), 3:4")
    assert line.startswith("1 caption has weights such as `(red hair:1.2)`, but weighted_captions is off")
    assert not of_weights("sks, (red hair:1.2), [hat]", weighted_captions=True)


def test_brackets_that_are_trained_as_a_weight_are_told():
    (line,) = of_weights("mash (arknights), (hat:1.2)", r"mash \(arknights\), (hat)", weighted_captions=True)
    assert line.startswith("1 caption has brackets within a tag, such as `mash (arknights)`")
    assert r"write `mash \(arknights\)`" in line
