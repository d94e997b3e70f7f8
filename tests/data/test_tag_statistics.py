"""What tags will do in training is counted right and said with the right cure."""

import random

import pytest

from library.data.tag_statistics import (
    Captioned,
    about_language,
    advice,
    count,
    fate,
    has_word,
    is_scene,
    is_sentence,
    spelled,
)
from library.messages import set_language


@pytest.fixture(autouse=True)
def _english():
    set_language("en")
    yield
    set_language("en")


def statistics(captions, folder="10_mytag"):
    return count([Captioned(folder, f"{number}.png", caption) for number, caption in enumerate(captions)])


def told(found, level=None):
    return [one for one in found if level in (None, one.level)]


def about(found, *tags):
    """The advice that is about exactly these tags."""
    return [one for one in found if set(one.tags) == set(tags)]


def test_counts_are_those_of_a_plain_count():
    rng = random.Random(1)
    words = ["1girl", "long_hair", "Long Hair", "hat", r"x \(y\)", "x (y)", "smile"]
    images = [
        Captioned(rng.choice(["a", "b"]), str(n), ", ".join(rng.choices(words, k=rng.randrange(6)))) for n in range(60)
    ]
    whole = count(images)
    for key, tag in whole.tags.items():
        having = [p for p in images if key in {spelled(t) for t in p.caption.split(", ")}]
        assert whole.count(tag) == len(having)
        assert whole.count(tag, "a") == sum(p.folder == "a" for p in having)
        assert whole.missing(tag, "b") == [p.name for p in images if p.folder == "b" and p not in having]
        assert sum(tag.spellings.values()) >= whole.count(tag)
        assert tag.text == max(tag.spellings, key=tag.spellings.get)
    counts = [whole.count(tag) for tag in whole.tags.values()]
    assert counts == sorted(counts, reverse=True)


def test_images_without_caption_count_in_no_share():
    whole = statistics(["hat", "hat", None, ""])
    assert whole.total() == 3
    assert whole.share(whole.tags["hat"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "tag", ["long_hair", "Long  Hair", " long hair", "ｌｏｎｇ hair", "(long hair:1.2)", "[Long_hair]"]
)
def test_spellings_of_one_tag_are_one(tag):
    assert spelled(tag) == "long hair"
    assert spelled(r"star_\(sky\)") == "star (sky)"


@pytest.mark.parametrize(
    ("text", "word", "stands"),
    [
        ("a photo of mytag, standing", "mytag", True),
        ("My_Tag, hat", "my tag", True),
        ("mytag2, hat", "mytag", False),
        ("notmytag", "mytag", False),
        ("我的衣服，帽子", "我的衣服", True),
        ("mytag的衣服", "mytag", True),
        ("a (b) c", "(b)", True),
    ],
)
def test_a_word_stands_whole_in_a_caption(text, word, stands):
    assert has_word(text, word) == stands


@pytest.mark.parametrize(
    "tag",
    ["white_background", "1girl", "2boys", "6+girls", "looking at viewer", "from side", "standing", "upper body",
     "masterpiece", "hand on own hip", "sitting on chair", "outdoors", "smile", "^_^", "rating:safe", "白色背景"],
)  # fmt: skip
def test_scene_pose_and_view_are_not_the_subject(tag):
    assert is_scene(tag)


@pytest.mark.parametrize(
    "tag", ["school uniform", "short sleeves", "red hair", "blue eyes", "hat", "dog", "white shirt", "handbag", "头发"]
)
def test_hair_eyes_and_clothes_are_the_subject(tag):
    assert not is_scene(tag)


@pytest.mark.parametrize(
    ("caption", "is_prose"),
    [
        ("A girl with long hair, standing in a garden.", True),
        ("a photograph of a woman who walks along a street at night", True),
        ("一个女孩站在花园里。", True),
        ("1girl, long hair, school uniform, looking at viewer", False),
        ("mytag", False),
        ("", False),
        (":d, !?", False),
        ("woman, dress, st. louis", False),
    ],
)
def test_sentences_are_known_from_tags(caption, is_prose):
    assert is_sentence(caption) == is_prose


def the_garment():
    """15 images as in the README's recipe: one tag was forgotten once."""
    captions = [f"mytag, 1girl, school uniform, short sleeves, {n % 2 * 'hat, '}{n % 3 * 'smile, '}" for n in range(15)]
    captions[4] = captions[4].replace("short sleeves, ", "")
    captions[7] += "scarf"
    return statistics(captions)


def test_a_feature_on_nearly_every_image_is_named_with_the_line_that_moves_it():
    (one,) = about(advice(the_garment(), {"10_mytag": "mytag"}), "school uniform", "short sleeves")
    assert one.level == "amber"
    assert "`school uniform` 100 %, `short sleeves` 93 %" in one.text
    assert 'delete_tags = ["school uniform", "short sleeves"]' in one.cure
    assert "keep the tags" in one.cure


def test_a_forgotten_tag_is_named_with_its_image():
    (one,) = about(advice(the_garment(), {"10_mytag": "mytag"}), "short sleeves")
    assert "`short sleeves`: 4.png" in one.text


def test_deleting_what_is_no_feature_of_the_subject_is_not_advised():
    found = advice(the_garment(), {"10_mytag": "mytag"})
    assert not any("1girl" in one.cure or '"mytag"' in one.cure for one in found)
    (one,) = about(found, "1girl")
    assert one.level == "green"


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("school uniform", "delete it to move the feature to `mytag`"),
        ("1girl", "so keep it"),
        ("hat", "stays controllable: include it"),
        ("scarf", "little effect"),
        ("mytag", "the trigger word"),
    ],
)
def test_the_fate_of_each_tag_is_told(tag, words):
    whole = the_garment()
    assert words in fate(whole, whole.tags[tag], "mytag", "10_mytag")


def test_a_trigger_word_that_stands_nowhere_is_red():
    (one,) = told(advice(statistics(["hat", "hat, x", "y", "z"]), {"10_mytag": "mytag"}), "red")
    assert one.text == "`mytag` is in none of the 4 captions: nothing would be learned for it"
    assert 'trigger_word = "mytag"' in one.cure


def test_captions_without_the_trigger_word_are_named():
    (one,) = told(advice(statistics(["mytag, hat", "a mytag at home", "y", "mytag"]), {"10_mytag": "mytag"}), "red")
    assert one.text == "`mytag` is missing in 1 of 4 captions: 2.png"


def test_a_trigger_word_with_a_meaning_of_its_own_is_told():
    whole = statistics(["uniform, school uniform"] * 4)
    (one,) = [one for one in about(advice(whole, {"10_mytag": "uniform"}), "uniform") if "meaning" in one.text]
    assert "school uniform" in one.text
    for word in ("standing", "girl"):
        found = advice(statistics([word] * 4), {"10_mytag": word}, is_everyday_word=lambda text: text == "girl")
        assert any("already has a meaning" in one.text for one in about(found, word))
    assert not any("meaning" in one.text for one in advice(the_garment(), {"10_mytag": "mytag"}))


def test_a_word_on_another_concepts_images_is_told():
    whole = count(
        [
            *(Captioned("a", f"{n}", "aaa, x") for n in range(4)),
            *(Captioned("b", f"b{n}", "bbb, aaa") for n in range(4)),
        ]
    )
    found = advice(whole, {"a": "aaa", "b": "bbb"})
    assert any("`aaa` is also on 4 images of other concepts: b0" in one.text for one in found)


def test_each_folder_is_judged_by_itself():
    captions = [("a", "aaa, hat")] * 5 + [("b", "bbb, shoes")] * 5
    whole = count([Captioned(folder, str(n), caption) for n, (folder, caption) in enumerate(captions)])
    found = advice(whole, {"a": "aaa", "b": "bbb"})
    assert about(found, "hat")[0].text.startswith("a: on nearly every image: `hat` 100 %")
    assert about(found, "shoes")[0].text.startswith("b: on nearly every image: `shoes` 100 %")


def test_spellings_are_told_with_the_line_that_unites_them():
    captions = ["mytag, long_hair, x (y)", r"mytag, long hair, x \(y\)", "mytag, Long Hair, T-shirt", "mytag, t shirt"]
    captions.append("mytag, t-shirt")
    (one,) = [one for one in advice(statistics(captions), {"10_mytag": "mytag"}) if "spelled" in one.text]
    assert '"long_hair -> long hair"' in one.cure
    assert "x (y)" not in one.cure  # escaped brackets are trained as brackets
    assert '"t shirt -> t-shirt"' in one.cure
    capitals = advice(statistics(["mytag, Hat"] * 3 + ["mytag, hat"]), {"10_mytag": "mytag"})
    assert not any("spelled" in one.text for one in capitals)  # CLIP makes no difference


def test_a_tag_with_a_weight_is_counted_as_the_tag_and_is_no_other_spelling():
    """Of six images four weigh it: it is on all, and no cure would take the weights away."""
    lines = [
        "(red hair:1.2), hat",
        "red hair, a",
        "[red hair], b",
        "((red hair)), c",
        "red hair, d",
        "(red hair, e:1.1)",
    ]
    whole = statistics([f"mytag, {line}" for line in lines])
    assert whole.count(whole.tags["red hair"]) == 6
    found = advice(whole, {"10_mytag": "mytag"})
    assert about(found, "red hair")
    assert not [one for one in found if "spelled differently" in one.text or "replace_tags" in one.cure]


def test_escaped_brackets_are_no_other_spelling():
    """They are trained as brackets."""
    whole = statistics([r"fox \(x\), hat", "fox (x)", "Fox (x), a", "fox (x)"])
    assert list(whole.tags["fox (x)"].spellings) == ["fox (x)", "Fox (x)"]
    assert not [one for one in advice(whole, {"10_mytag": None}) if "spelled differently" in one.text]


def test_tags_that_always_stand_together_are_told():
    captions = ["mytag, hat, ribbon", "mytag, hat, ribbon", "mytag, hat, ribbon", "mytag, shoes", "mytag, shoes, bag"]
    (one,) = about(advice(statistics(captions), {"10_mytag": "mytag"}), "hat", "ribbon")
    assert "`hat`, `ribbon` (3 images)" in one.text


def test_long_captions_are_told_with_the_length_that_holds_them():
    def lengths(captions):
        return [len(caption.split()) for caption in captions]

    for words, cure in ((100, "max_token_length = 150"), (200, "= 225"), (300, "Shorten them")):
        whole = statistics(["mytag " * 3, "mytag " * words])
        (one,) = [one for one in advice(whole, {"10_mytag": "mytag"}, token_counts=lengths) if "tokens" in one.text]
        assert f"1.png ({words})" in one.text
        assert cure in one.cure
    assert not any("tokens" in one.text for one in advice(the_garment(), {"10_mytag": "mytag"}, token_counts=lengths))


def test_images_without_tags_and_chinese_commas_are_named():
    found = advice(statistics(["mytag, hat", "mytag", "", None, "红发，帽子"]), {"10_mytag": "mytag"})
    assert any("3 of 5 images have no tags besides the trigger word: 1.png, 2.png, 3.png" in o.text for o in found)
    assert any("Chinese commas" in one.text and "4.png" in one.text for one in found)


def test_the_most_urgent_comes_first():
    levels = [one.level for one in advice(statistics(["hat, 1girl"] * 5 + ["mytag, x"]), {"10_mytag": "mytag"})]
    assert levels == sorted(levels, key=("red", "amber", "green").index)
    assert {"red", "amber", "green"} == set(levels)


def test_an_empty_set_has_no_advice():
    assert advice(count([]), {}) == []


def test_captions_in_another_language_are_told_once_with_what_to_do():
    lines = ["小美, 红色头发, 站着", "小美, 帽子", "小美, smile"]
    (one,) = [one for one in advice(statistics(lines), {"10_mytag": "小美"}) if "English only" in one.text]
    assert one.level == "red"
    assert one.text.startswith(
        "Chinese in place of English: 2 of 3 captions (such as `红色头发`) and the trigger word `小美`. The text"
    )
    assert "tag_images.py" in one.cure
    assert "xiaomei" in one.cure
    set_language("zh")
    (one,) = about_language(lines, ["小美"])
    assert one.text.startswith("3 个标注文件中的 2 个（如 `红色头发`）、触发词 `小美` 用的是中文")


def test_a_trigger_word_in_another_script_is_told_also_alone():
    (one,) = about_language(["1girl, hat"], ["девушка", None, "mytag"])
    assert one.text.startswith("Cyrillic letters in place of English: the trigger word `девушка`")
    assert "tag_images" not in one.cure
    assert about_language([], ["小美"])[0].level == "red"


def test_a_few_foreign_words_are_a_lesser_matter_and_english_is_none():
    (one,) = about_language(["hat, 帽子", "hat", "a", "b"], ["mytag"])
    assert one.level == "amber"
    assert not about_language(["caf\u00e9, ＡＢＣ， \U0001f600", ""], ["mytag", None])
