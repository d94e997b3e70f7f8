"""Rules over tags: what each does, in which order, and that doing it twice is doing it once."""

import random

import pytest

from library.data.tag_edits import (
    Edits,
    Rule,
    check,
    edited,
    matches,
    read_rules,
    refuse_commas,
    unused,
    with_first_line,
)


def one(line, word=None, **edits):
    return next(iter(edited([(line, word)], Edits(**edits))))


def test_the_clothing_recipe():
    """From the README: what is special to the garment goes, the own word comes."""
    line = "1girl, school uniform, black shirt, standing, short sleeves, white_skirt"
    deleted = ["school uniform", "black shirt", "white skirt", "short sleeves"]
    assert one(line, "mytag", delete=deleted) == "mytag, 1girl, standing"


@pytest.mark.parametrize(
    ("edits", "after"),
    [
        (dict(delete=["long hair"]), "1girl, hat, red eyes"),  # in both spellings
        (dict(delete=["* hair", "*eyes"]), "1girl, hat"),
        (dict(delete=["hair"]), "1girl, long_hair, hat, Long Hair, red eyes"),  # no part of a tag
        (dict(delete=["[a-z]*", "?at"]), "1girl, long_hair, hat, Long Hair, red eyes"),  # only * is special
        (dict(replace=[Rule("long hair", "long hair")]), "1girl, long hair, hat, red eyes"),
        (dict(replace=[Rule("hat", "cap"), Rule("cap", "beret")]), "1girl, long_hair, beret, Long Hair, red eyes"),
        (dict(replace=[Rule("* eyes", "eyes")]), "1girl, long_hair, hat, Long Hair, eyes"),
        (dict(imply=[Rule("hat", "headwear")]), "1girl, long_hair, hat, headwear, Long Hair, red eyes"),
        (dict(imply=[Rule("hat", "a"), Rule("a", "b")]), "1girl, long_hair, hat, a, b, Long Hair, red eyes"),
        (dict(imply=[Rule("hat", "1Girl")]), "1girl, long_hair, hat, Long Hair, red eyes"),  # is there
        (dict(add=["photo", "hat"]), "photo, 1girl, long_hair, hat, Long Hair, red eyes"),
        (dict(add=["photo"], imply=[Rule("photo", "real")]), "photo, 1girl, long_hair, hat, red eyes, real"),
        (dict(order="alphabetical"), "1girl, hat, long_hair, red eyes"),
    ],
)  # fmt: skip
def test_what_each_rule_does(edits, after):
    line = "1girl, long_hair, hat, Long Hair, red eyes"
    keeps = "Long Hair" in after
    assert one(line, remove_duplicates=not keeps, **edits) == after


def test_the_trigger_word_stands_first_and_once():
    assert one("hat, My_Tag, 1girl", "my tag") == "my tag, hat, 1girl"
    assert one("my tag, hat, my_tag", "my tag") == "my tag, hat"
    assert one("", "mytag", add=["hat"]) == "mytag, hat"
    assert one("hat, b", "mytag", order="alphabetical") == "mytag, b, hat"


@pytest.mark.parametrize(
    ("edits", "after"),
    [
        (dict(delete=["red hair"]), "(hat:1.2), [b], mash (arknights)"),  # the weight over both stays on the other
        (dict(replace=[Rule("red_hair", "ginger")]), "(ginger:1.2), (hat:1.2), [b], mash (arknights)"),
        (dict(replace=[Rule("(hat:1.2)", "hat")]), "(red hair:1.2), hat, [b], mash (arknights)"),
        (dict(replace=[Rule("b", "(b:1.5)")]), "(red hair:1.2), (hat:1.2), (b:1.5), mash (arknights)"),
        (dict(add=["hat"]), "(red hair, hat:1.2), [b], mash (arknights)"),  # is there
        (dict(delete=["mash (arknights)"]), "(red hair:1.2), (hat:1.2), [b]"),
    ],
)
def test_a_tag_with_a_weight_is_the_tag_and_keeps_it(edits, after):
    line = "(red hair, hat:1.2), [b], mash (arknights)"
    assert one(line, **edits) == after
    assert one(after, **edits) == after


def test_a_trigger_word_with_a_weight_is_the_trigger_word():
    assert one("hat, (My_Tag:1.3)", "my tag") == "(my tag:1.3), hat"
    assert one("(mytag:1.3), hat", "mytag") == "(mytag:1.3), hat"


def test_frequent_tags_come_first():
    lines = ["rare, smile, hat", "hat, smile", "hat"]
    edits = Edits(order="frequent first")
    assert list(edited([(line, None) for line in lines], edits)) == ["hat, smile, rare", "hat, smile", "hat"]


def test_what_no_rule_concerns_stays_byte_for_byte():
    line = " 1girl,hat ,, smile,"
    assert one(line, delete=["shoes"]) == line
    assert one("mytag,hat", "mytag") == "mytag,hat"


def test_chinese_commas_separate_tags_afterwards():
    assert one("红发，1girl, 帽子", delete=["1girl"]) == "红发, 帽子"


def test_sentences_are_not_mangled():
    prose = "A girl with long hair, standing in a wide garden, looking up at the sky."
    assert one(prose, order="alphabetical") == prose
    assert one(prose, delete=["long hair"]) == prose
    assert one(prose, "mytag") == f"mytag, {prose}"
    own = "A photo of mytag, standing in a wide garden, under a tree that is old."
    assert one(own, "mytag", order="frequent first") == own


def test_only_the_first_line_of_a_caption_changes():
    assert with_first_line("\n  old, line \r\nsecond\r\n", "new") == "\nnew\r\nsecond\r\n"
    assert with_first_line("old", "new") == "new"
    assert with_first_line("old\u2028second", "new") == "new\u2028second"
    assert with_first_line("", "new") == "new"


def test_twice_is_once_whatever_the_rules():
    """A thousand random sets of rules; those that contradict each other are refused."""
    rng = random.Random(0)
    tags = ["a", "b", "B", "c d", "c_d", "e", "long hair", "Long_Hair", "x (y)", r"x \(y\)", "own", "a. ", "b c d e f."]
    patterns = [*tags, "*", "c*", "* hair"]
    tried = 0
    for _ in range(3000):
        edits = Edits(
            replace=[Rule(rng.choice(patterns), rng.choice(tags)) for _ in range(rng.randrange(3))],
            delete=rng.sample(patterns, rng.randrange(2)),
            imply=[Rule(rng.choice(patterns), rng.choice(tags)) for _ in range(rng.randrange(3))],
            add=rng.sample(tags, rng.randrange(3)),
            remove_duplicates=rng.random() < 0.7,
            order=rng.choice(["keep", "frequent first", "alphabetical"]),
        )
        word = rng.choice(["own", None])
        if check(edits, [word] if word else []):
            continue
        tried += 1
        lines = [(rng.choice([", ", "，", ","]).join(rng.choices(tags, k=rng.randrange(6))), word) for _ in range(4)]
        first = list(edited(lines, edits))
        assert list(edited([(line, word) for line in first], edits)) == first, (edits, lines)
    assert tried > 500


def test_rules_that_contradict_each_other_are_refused():
    edits = Edits(
        replace=[Rule("hat", "cap"), Rule("red", "blue"), Rule("blue", "red")],
        delete=["ca*", "my*"],
        imply=[Rule("skirt", "hat")],
        add=["cap"],
    )
    problems = check(edits, ["mytag"])
    assert problems == [
        'delete_tags "my*" would remove what trigger_word "mytag" adds. Delete one of them',
        'delete_tags "ca*" would remove what add_tags "cap" adds. Delete one of them',
        'delete_tags "ca*" would remove what replace_tags "hat -> cap" adds. Delete one of them',
        'replace_tags "hat -> cap" would remove what imply_tags "skirt -> hat" adds. Delete one of them',
        'replace_tags "red -> blue" is circular with the others. Delete one of them',
        'replace_tags "blue -> red" is circular with the others. Delete one of them',
    ]


def test_rules_that_cannot_be_read_are_all_named():
    problems = []
    rules = read_rules("replace_tags", ["a -> b", "c→d", "serafuku sailor", "hat ->", "-> x", "a -> *"], problems)
    assert rules == [("a", "b"), ("c", "d")]
    assert problems == [
        'replace_tags: "serafuku sailor" is not of the form "old tag -> new tag"',
        'replace_tags: "hat ->" has nothing on one side. To remove a tag, put it in delete_tags',
        'replace_tags: "-> x" has nothing on one side',
        'replace_tags: "a -> *": * is allowed only left of ->',
    ]


def test_a_tag_with_a_comma_is_refused_with_what_was_meant():
    problems = []
    refuse_commas("delete_tags", ["hat, shoes", "帽子，鞋", "fine"], problems)
    assert problems == [
        'delete_tags: "hat, shoes" contains a comma, which separates tags: write "hat", "shoes"',
        'delete_tags: "帽子，鞋" contains a comma, which separates tags: write "帽子", "鞋"',
    ]


def test_rules_that_meet_nothing_are_known():
    edits = Edits(
        replace=[Rule("hat", "cap"), Rule("gone", "x")], delete=["cap", "shoe*", "Red_Hair"], imply=[Rule("x", "y")]
    )
    assert unused(edits, ["hat", "red hair"]) == [
        ("replace_tags", "gone"), ("delete_tags", "shoe*"), ("imply_tags", "x"),
    ]  # fmt: skip


def test_brackets_match_escaped_or_not():
    assert matches("star (sky)", r"Star_\(sky\)")
    assert matches("*(sky)", "star (sky)")
    assert not matches("star", "star (sky)")
