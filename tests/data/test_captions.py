"""Captions: any encoding, and sd-scripts' order of processing."""

import random

import pytest

from library.contracts import Sample
from library.data import captions
from library.options.training import Config

CHINESE = "一个女孩, 红色头发"


@pytest.mark.parametrize(
    ("data", "text", "encoding"),
    [
        (b"1girl, red hair", "1girl, red hair", "utf-8-sig"),
        (CHINESE.encode(), CHINESE, "utf-8-sig"),
        (b"\xef\xbb\xbfmytag, 1girl", "mytag, 1girl", "utf-8-sig"),
        (CHINESE.encode("utf-16"), CHINESE, "utf-16"),
        (b"\xfe\xff" + CHINESE.encode("utf-16-be"), CHINESE, "utf-16"),
        ("mytag, 1girl".encode("utf-16-le"), "mytag, 1girl", "utf-16-le"),
        ("mytag, 1girl".encode("utf-16-be"), "mytag, 1girl", "utf-16-be"),
        (CHINESE.encode("gbk"), CHINESE, "gb18030"),
        ("𠀀 rare".encode("gb18030"), "𠀀 rare", "gb18030"),
        ("smile, café".encode("latin-1"), "smile, café", "cp1252"),
        (b"", "", "utf-8-sig"),
    ],
)
def test_texts_are_read_in_the_encoding_they_were_written_in(data, text, encoding):
    assert captions.decode(data) == (text, encoding)


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", b"\xff\xfe\x00", b"abc\x81"])
def test_what_is_no_text_is_refused(data):
    with pytest.raises(ValueError, match="neither UTF-8"):
        captions.decode(data)


def process(caption, *, epoch=1, seed=0, **options):
    return captions.process(caption, Config(**options), rng=random.Random(seed), epoch=epoch)


def test_an_untouched_caption_keeps_its_own_spacing():
    assert process("a,b ,  c") == "a,b ,  c"


def test_only_the_first_line_that_is_not_blank_is_used():
    assert process("\n  mytag, a \nmore\n") == "mytag, a"


def test_prefix_and_suffix_stand_around_the_caption():
    assert process("a, b", caption_prefix="mytag,", caption_suffix="best") == "mytag, a, b best"


def test_dropout_comes_after_the_prefix_so_nothing_is_left():
    assert process("a", caption_prefix="mytag,", caption_dropout_rate=1.0) == ""


def test_every_second_epoch_is_without_captions_beginning_with_the_second():
    seen = [process("a", epoch=epoch, caption_dropout_every_n_epochs=2) for epoch in (1, 2, 3, 4)]
    assert seen == ["a", "", "a", ""]


def test_shuffling_keeps_the_first_tags_and_loses_none():
    caption = ", ".join("abcdefgh")
    seen = {process(caption, seed=seed, shuffle_caption=True, keep_tokens=2) for seed in range(20)}
    assert len(seen) > 15
    for text in seen:
        assert text.startswith("a, b, ")
        assert sorted(text.split(", ")) == list("abcdefgh")


def test_tag_dropout_spares_the_kept_tokens():
    assert process("a, b, c", caption_tag_dropout_rate=1.0, keep_tokens=1) == "a"


def test_what_stands_before_the_separator_or_behind_a_second_one_keeps_its_place():
    options = dict(keep_tokens_separator="|||", shuffle_caption=True, caption_tag_dropout_rate=0.0)
    seen = {process("mytag, girl ||| a, b, c, d ||| best", seed=seed, **options) for seed in range(20)}
    assert len(seen) > 10
    for text in seen:
        assert text.startswith("mytag, girl, ")
        assert text.endswith(", best")
    assert process("mytag ||| a", keep_tokens_separator="|||") == "mytag, a"  # no model shall learn the mark


def test_joined_tags_move_together():
    options = dict(shuffle_caption=True, secondary_separator=";;;")
    seen = {process("a, red;;;hat, b, c", seed=seed, **options) for seed in range(20)}
    assert all("red,hat" in text for text in seen)
    assert process("a;b", caption_separator="|", secondary_separator=";") == "a|b"


def test_tags_may_be_separated_by_something_else():
    texts = {
        process("a|b|c", seed=seed, caption_separator="|", shuffle_caption=True, keep_tokens=1) for seed in range(9)
    }
    assert texts == {"a| b| c", "a| c| b"}


def test_tags_keep_their_own_separator_wherever_they_are_moved():
    """As in sd-scripts since its pull requests 2390 and 2391."""
    for options in (
        dict(shuffle_caption=True, keep_tokens=9),
        dict(caption_tag_dropout_rate=1e-9),
        dict(token_warmup_step=5, keep_tokens=9),
        dict(keep_tokens_separator="|||"),
    ):
        text = "sks;red hair ;standing"
        text = text.replace(";", "|||", 1) if "keep_tokens_separator" in options else text
        expected = "sks; red hair; standing"
        assert process(text, caption_separator=";", **options) == expected
        assert captions.whole(text, Config(caption_separator=";", **options)) == expected
    assert process("a, b", caption_separator=", ", shuffle_caption=True, keep_tokens=2) == "a, b"


@pytest.mark.parametrize(
    ("caption", "tags"),
    [
        ("(red hair:1.2), [hat], ((a)), ([b]:2)", ["red hair", "hat", "a", "b"]),
        ("(red hair, (hat:1.1):1.2)", ["red hair", "hat"]),
        ("((a:1.2):.5), ( b : 1 )", ["a", "b"]),
        ("mash (arknights), a (b) c, (a) (b)", ["mash (arknights)", "a (b) c", "(a) (b)"]),
        (r"\(x\), (\(y\):1.3), fox \(z\)", [r"\(x\)", r"\(y\)", r"fox \(z\)"]),
        (":), :(, (o)_(o), a:1.2", [":)", ":(", "(o)_(o)", "a:1.2"]),
    ],
)
def test_brackets_around_whole_tags_are_weights_and_others_are_letters(caption, tags):
    assert [tag.text for tag in captions.weighted_tags(caption)] == tags
    assert captions.tags(captions.unweighted(caption)) == tags


def test_a_weight_over_several_tags_is_each_ones_own():
    found = [str(tag) for tag in captions.weighted_tags("(red hair, [hat]:1.2), standing")]
    assert found == ["(red hair:1.2)", "([hat]:1.2)", "standing"]


def test_tags_are_compared_whatever_separates_or_weighs_them(tmp_path):
    def compared(caption, **options):
        return captions.compared(Sample(tmp_path, caption, 1, 1, "1_a", 1, False), Config(**options))

    assert compared("sks;(red hair:1.2);hat, blue", caption_separator=";") == "sks, red hair, hat  blue"
    assert compared(r"sks, (fox \(x\):1.2)", weighted_captions=True) == "sks, fox (x)"


def test_brackets_of_taggers_are_trained_as_the_letters_they_stand_for():
    assert process(r"mash \(arknights\), 1girl") == "mash (arknights), 1girl"
    assert process(r"mash \(arknights\)", weighted_captions=True) == r"mash \(arknights\)"  # read with the weights
    assert process(r"\(^o^)/") == r"\(^o^)/"


def test_wildcards_choose_a_line_and_one_of_each_pair_of_braces():
    caption = "a {red|blue} hat\n\na {{curly}} {only} cap"
    seen = {process(caption, seed=seed, enable_wildcard=True, caption_prefix="mytag,") for seed in range(40)}
    assert seen == {"mytag, a red hat", "mytag, a blue hat", "mytag, a {curly} only cap"}
    assert process(caption) == "a {red|blue} hat"  # without it braces are braces
    shares = [process("{a|b|c}", seed=seed, enable_wildcard=True) for seed in range(900)]
    assert all(250 < shares.count(letter) < 350 for letter in "abc")


def test_tags_join_step_by_step_in_the_warmup():
    """sd-scripts: the first floor(share * (len - min)) + min of the tags that may be moved."""
    caption, config = "keep, a, b, c, d, e", Config(keep_tokens=1, token_warmup_step=10, token_warmup_min=2)
    counts = []
    for step in range(12):
        text = captions.process(caption, config, rng=random.Random(0), epoch=1, warmup=min(1, step / 10))
        counts.append(len(captions.tags(text)) - 1)
        assert caption.startswith(text)
    assert counts == [2, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5]


def test_dropout_rates_are_shares():
    rng = random.Random(1)
    config = Config(caption_dropout_rate=0.25)
    dropped = sum(captions.process("a", config, rng=rng, epoch=1) == "" for _ in range(4000))
    assert 0.22 < dropped / 4000 < 0.28
    config = Config(caption_tag_dropout_rate=0.25)
    kept = sum(len(captions.tags(captions.process("a, b, c, d", config, rng=rng, epoch=1))) for _ in range(1000))
    assert 0.72 < kept / 4000 < 0.78


def test_captions_that_can_be_listed_are_listed_with_what_dropout_makes():
    assert captions.possible(["b", "a", "a"], Config()) == ["a", "b"]
    assert captions.possible(["a"], Config(caption_prefix="x")) == ["x a"]
    assert captions.possible(["a"], Config(caption_dropout_rate=0.1)) == ["", "a"]
    assert captions.possible(["a"], Config(shuffle_caption=True)) is None
    assert captions.possible(["a"], Config(caption_tag_dropout_rate=0.1)) is None
    assert captions.possible(["a"], Config(token_warmup_step=5)) is None
    assert captions.possible(["{a|b}"], Config()) == ["{a|b}"]
    assert captions.possible(["{a|b}"], Config(enable_wildcard=True)) is None
    assert captions.possible(["a\nb"], Config(enable_wildcard=True)) is None
    assert captions.possible(["{{a}}"], Config(enable_wildcard=True)) == ["{a}"]


def test_tag_frequency_counts_images_not_repeats(tmp_path):
    rows = [("10_a", "1Girl, smile"), ("10_a", "smile,\nsecond line"), ("2_b", "smile")]
    samples = [Sample(tmp_path, caption, 1, 1, folder, 10, False) for folder, caption in rows]
    assert captions.tag_frequency(samples) == {"10_a": {"1girl": 1, "smile": 2}, "2_b": {"smile": 1}}
    samples = [Sample(tmp_path, caption, 1, 1, "1_a", 1, False) for caption in ("(Red hair:1.2), b", "red hair")]
    assert captions.tag_frequency(samples) == {"1_a": {"red hair": 2, "b": 1}}
    samples = [Sample(tmp_path, "sks; red hair", 1, 1, "1_a", 1, False)]
    assert captions.tag_frequency(samples, Config(caption_separator=";")) == {"1_a": {"sks": 1, "red hair": 1}}


def test_tags_are_counted_over_all_folders_by_number_or_by_name():
    frequency = {"2_a": {"hat": 3, "cat": 1}, "1_b": {"hat": 1, "ant": 2}}
    assert captions.count_table(frequency).split() == ["4", "hat", "2", "ant", "1", "cat"]
    assert captions.count_table(frequency, is_alphabetical=True).split() == ["2", "ant", "1", "cat", "4", "hat"]


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("红色头发", "Chinese"),
        ("sks, 女孩", "Chinese"),
        ("女の子", "Japanese"),
        ("소녀", "Korean"),
        ("девушка", "Cyrillic letters"),
        ("κορίτσι", "a script other than Latin"),
        ("فتاة", "a script other than Latin"),
        ("caf\u00e9, Stra\u00dfe, \u0142", None),
        ("\uff41\uff42\uff43\uff0c \u201cx\u201d, 3:4, \u00b5", None),  # full-width letters and commas
        ("(ﾟДﾟ), (´･ω･`), μ's, 5 Ω, ノ", None),
        ("smile \U0001f600 \u2764\ufe0f ^_^ ★ ♪ ½ ①", None),
        ("", None),
    ],
)
def test_texts_that_the_text_encoders_do_not_know_are_known_by_their_letters(text, script):
    found = captions.foreign_script(text)
    assert (found and found[0]) == script
