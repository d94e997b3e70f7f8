"""What is told to type is, as a web UI reads it, what was trained."""

import random

import pytest

from library.diffusion import prompts
from library.options.training import Config
from library.training import dataset_findings
from library.training.invocation import invocation
from library.training.prepare import as_prompt


def read_back(prompt):
    """(LoRAs, words, weights) as the web UI reads a prompt."""
    read = prompts.parse(prompt)
    pieces = [piece for section in read.weighted for piece in section]
    return read.loras, "".join(text for text, _ in pieces), {weight for _, weight in pieces}


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("mytag", "mytag"),
        ("mash (arknights)", r"mash \(arknights\)"),
        (r"mash \(arknights\)", r"mash \(arknights\)"),  # of a tagger: trained as brackets
        ("a [b] ((c:1.2))", r"a \[b\] \(\(c:1.2\)\)"),
        (r"a\b", r"a\\b"),
        ("TOM AND BREAK", "TOM and break"),  # the same tokens
        ("3:4, 小美", "3:4, 小美"),
    ],
)
def test_the_told_prompt_is_read_as_what_was_trained(text, typed):
    found = invocation("my (lora)", [text])
    assert found == (f"<lora:my (lora):0.8>, {typed}", typed, [])
    loras, words, weights = read_back(found.prompt)
    assert loras == [("my (lora)", 0.8, 0.8)]
    assert words.casefold() == f", {text}".replace(r"\(", "(").replace(r"\)", ")").casefold()
    assert weights == {1.0}


def test_any_text_can_be_typed_or_it_is_said_that_it_cannot():
    rng = random.Random(0)
    letters = ["a", "b ", "(", ")", "[", "]", "\\", ":", "1.2", "#", "<", ">", "|", ",", "AND", "BREAK", " ", "{", "红"]
    typable = 0
    for _ in range(3000):
        text = "".join(rng.choices(letters, k=rng.randrange(1, 9)))
        typed = prompts.literal(text)
        if typed is not None:
            typable += 1
            _, words, weights = read_back(typed)
            assert words.casefold() == text.casefold()
            assert weights <= {1.0}
        prompts.parse(prompts.nearest_literal(text))
    assert 1500 < typable < 3000


def test_what_cannot_be_typed_is_said_and_left_out():
    found = invocation("a", ["c# girl", "mytag", "x:1.2", "<b:c>"])
    assert found.prompt == "<lora:a:0.8>, mytag"
    assert len(found.notes) == 3
    assert "`c# girl` cannot be typed into a web UI" in found.notes[1]
    assert "the file name a:b cannot be typed" in invocation("a:b", []).notes[0]


def test_words_trained_with_weights_are_told_without_them():
    assert invocation("a", ["(mash:1.2) (x)"], has_weights=True).words == "mash x"
    assert invocation("a", [r"mash \(x\)"], has_weights=True).words == r"mash \(x\)"


def test_a_trigger_word_that_cannot_be_typed_is_said_before_the_training():
    (finding,) = dataset_findings.of_typing("c# girl", Config())
    assert finding.level == "amber"
    assert not list(dataset_findings.of_typing("mash (arknights)", Config()))


def test_words_of_any_lora_are_shown_as_they_are_typed():
    assert prompts.typed(["mash (arknights)", "c#"]) == r"mash \(arknights\), c# (cannot be typed)"


def test_captions_become_preview_prompts_that_say_the_same():
    assert as_prompt("mash (arknights), [x], AND #1", Config()).text == r"mash \(arknights\), \[x\], and  1"
    assert as_prompt("(red hair:1.2), hat", Config(weighted_captions=True)).text == "(red hair:1.2), hat"
    assert as_prompt("(red hair:1.2) AND hat", Config(weighted_captions=True)).text == "red hair and hat"
