"""Taggers see what they were trained to see, and their tags are written as a caption wants them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.data.tag_statistics import spelled
from library.images import local_models, tagger
from library.images.tagger import CHARACTER, GENERAL, RATING, Tag
from library.messages import UserError
from tests.images import small_tagger

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


def opened(path: Path) -> tagger.Tagger:
    return tagger.open_tagger(local_models.open_onnx(path, "cpu"), tagger.read_table(tagger.table_of(path)))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# ---- what the model gets ----


@pytest.mark.parametrize("size", [(8, 8), (8, 5), (3, 8), (8, 1)])
def test_the_model_gets_bgr_in_the_middle_of_a_white_square(tmp_path, size):
    """Seen by a model that hands its input through; nothing is resized here, so it is exact."""
    image = noise(*size)
    model = opened(small_tagger.pixels(tmp_path, size=8))
    got = model.probabilities([model.prepare(image)])[0].reshape(8, 8, 3) * 255
    expected = np.full((8, 8, 3), 255)
    left, top = (8 - size[0]) // 2, (8 - size[1]) // 2
    expected[top : top + size[1], left : left + size[0]] = np.asarray(image)[:, :, ::-1]
    np.testing.assert_allclose(got, expected, atol=1e-3)


@pytest.mark.parametrize(("size", "most"), [((150, 100), 0), ((40, 30), 0), ((900, 600), 4), ((300, 1000), 4)])
def test_large_images_are_averaged_down_first_which_changes_little(size, most):
    """Even of noise, whose seam may move by a sixth of a pixel; up to three times the size nothing is averaged."""
    image = noise(size[0] // 30 + 1, size[1] // 30 + 1).resize(size, Image.Resampling.BICUBIC)
    side = max(size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    expected = np.asarray(square.resize((64, 64), Image.Resampling.BICUBIC))[:, :, ::-1].astype(int)
    assert np.abs(tagger.on_square(image, 64) - expected).mean() <= most


@pytest.mark.parametrize(
    "form", [{}, {"batch": 1}, {"batch": 4}, {"channels_first": True}, {"half": True}, {"logits": True}], ids=str
)
def test_probabilities_are_those_of_plain_numpy(tmp_path, form):
    """In every form of the same model, five images at once."""
    model = opened(small_tagger.colours(tmp_path, **form))
    prepared = [model.prepare(Image.new("RGB", (8, 8), colour)) for colour in ("red", "lime", "blue", "white", "teal")]
    expected = [small_tagger.probabilities(one) for one in prepared]
    np.testing.assert_allclose(model.probabilities(prepared), expected, atol=2e-3)


def test_a_model_that_does_not_say_its_size_gets_the_usual_one(tmp_path):
    assert opened(small_tagger.colours(tmp_path, size="side")).size == tagger.USUAL_SIZE


# ---- models that are none ----


def test_another_number_of_tags_than_outputs_is_told_with_both(tmp_path):
    path = small_tagger.colours(tmp_path, tags=small_tagger.TAGS[:7])
    with pytest.raises(UserError) as caught:
        opened(path)
    assert str(caught.value) == (
        f"{tmp_path / 'selected_tags.csv'} has 7 tags, but the model beside it gives 10: they belong to different "
        "models. Get both files from the same place"
    )


def test_a_model_that_takes_no_image_is_no_tagger(tmp_path):
    from onnx import TensorProto, helper, save

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "ab"]
    graph = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "none", value[:1], value[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "model.onnx")
    (tmp_path / "selected_tags.csv").write_text("tag_id,name,category,count\n1,hat,0,1\n")
    with pytest.raises(UserError, match="is not a WD-style tagger"):
        opened(tmp_path / "model.onnx")


def test_a_device_that_computes_nonsense_is_told(tmp_path):
    model = opened(small_tagger.colours(tmp_path, broken=True))
    with pytest.raises(UserError, match='Use device = "cpu"'):
        model.probabilities([model.prepare(noise(8, 8))])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"hat,scarf\n1,2\n", "no columns name and category"),
        (b"tag_id,name,category,count\n", "there is no tag in it"),
        (b"tag_id,name,category,count\n1,hat,0,1\n2,scarf,none,1\n", "tag 2: invalid literal"),
        (b"tag_id,name,category,count\n1,hat\n", "tag 1:"),
        (b"\xff\xfe\x00", "cannot be read as a table of tags"),
    ],
)
def test_a_damaged_table_is_told(tmp_path, content, told):
    (tmp_path / "selected_tags.csv").write_bytes(content)
    with pytest.raises(UserError, match=told):
        tagger.read_table(tmp_path / "selected_tags.csv")


# ---- which models there are ----


def touched(root: Path, *names: str) -> list[Path]:
    paths = [root / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def test_a_table_makes_a_tagger_of_a_model(tmp_path):
    touched(tmp_path, "a/model.onnx", "a/selected_tags.csv", "b/wd.onnx", "b/wd.csv", "c/u2net.onnx")
    touched(tmp_path, "pixai/model.onnx", "pixai/selected_tags.csv", "pixai/preprocess.json")
    assert tagger.table_of(tmp_path / "a/model.onnx") == tmp_path / "a/selected_tags.csv"
    assert tagger.table_of(tmp_path / "b/wd.onnx") == tmp_path / "b/wd.csv"
    assert tagger.table_of(tmp_path / "c/u2net.onnx") is None
    assert tagger.table_of(tmp_path / "pixai/model.onnx") is None  # its images are prepared otherwise


HUB = "hub/models--SmilingWolf--wd-vit-tagger-v3/snapshots/0123abcd/model.onnx"


def test_names_are_those_a_person_knows():
    assert tagger.name_of(Path(HUB)) == "SmilingWolf/wd-vit-tagger-v3"
    assert tagger.name_of(Path("models/wd-vit-tagger-v3/model.onnx")) == "wd-vit-tagger-v3"
    assert tagger.name_of(Path("WD14-Tagger/models/wd-v1-4-moat-tagger-v2.onnx")) == "wd-v1-4-moat-tagger-v2"


@pytest.mark.parametrize(
    "path",
    [
        HUB,
        "models/wd-vit-tagger-v3/model.onnx",
        "models/WD-ViT-Tagger-v3/Model.onnx",
        "modelscope/hub/models/SmilingWolf/wd-vit-tagger-v3/model.onnx",
        "wd14_tagger_model/SmilingWolf_wd-vit-tagger-v3/model.onnx",
        "ComfyUI-WD14-Tagger/models/wd-vit-tagger-v3.onnx",
    ],
)
def test_a_hub_name_is_known_wherever_a_program_put_it(path):
    assert tagger.is_called(Path(path), "SmilingWolf/wd-vit-tagger-v3")
    assert not tagger.is_called(Path(path), "SmilingWolf/wd-vit-large-tagger-v3")
    assert not tagger.is_called(Path(path), "SmilingWolf/wd-vit-tagger-v")


def test_the_best_known_is_taken_of_several(tmp_path):
    names = ["mine", "wd-v1-4-vit-tagger", "wd-v1-4-vit-tagger-v2", "wd-vit-tagger-v3", "wd-swinv2-tagger-v3", "other"]
    for name in names:
        touched(tmp_path, f"{name}/model.onnx", f"{name}/selected_tags.csv")
    models = [tmp_path / name / "model.onnx" for name in names]
    ordered = [tagger.name_of(path) for path in tagger.best_first([*models, tmp_path / "none.onnx"])]
    expected = ["wd-swinv2-tagger-v3", "wd-vit-tagger-v3", "wd-v1-4-vit-tagger-v2", "wd-v1-4-vit-tagger"]
    assert ordered == [*expected, "mine", "other"]


# ---- from what it sees to a caption ----

SEEN = [
    Tag("general", RATING, 0.3),
    Tag("sensitive", RATING, 0.6),
    Tag("hat", GENERAL, 0.4),
    Tag("1girl", GENERAL, 0.9),
    Tag("scarf", GENERAL, 0.35),
    Tag("miku", CHARACTER, 0.8),
    Tag("ganyu", CHARACTER, 0.86),
]


def names(tags):
    return [tag.name for tag in tags]


def test_each_category_has_its_threshold_and_the_surest_come_first():
    assert names(tagger.chosen_tags(SEEN, 0.35, 0.85)) == ["1girl", "ganyu", "hat"]
    assert names(tagger.chosen_tags(SEEN, 0.3, 0.7)) == ["1girl", "ganyu", "miku", "hat", "scarf"]
    assert names(tagger.chosen_tags(SEEN, 0.35, 1.0)) == ["1girl", "hat"]


def test_the_rating_is_the_most_probable_one_and_stands_last():
    assert names(tagger.chosen_tags(SEEN, 0.5, 0.85, with_rating=True)) == ["1girl", "ganyu", "sensitive"]


WEB_UI_EMOTICONS = [  # the list of the web UI's wd14-tagger
    "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@", "^_^", "o_o",
    "u_u", "x_x", "|_|", "||_||",
]  # fmt: skip


@pytest.mark.parametrize("name", WEB_UI_EMOTICONS)
def test_emoticons_keep_their_underscore(name):
    assert tagger.written(name) == name


def test_other_tags_get_spaces():
    for name in (
        "long_hair",
        "1girl",
        "t-shirt",
        "c.c.",
        "ak-12_(girls'_frontline)",
        "x-ray_(medium)",
        "no_u",
        "五条_悟",
    ):
        assert tagger.written(name) == name.replace("_", " ")
        assert tagger.written(name, underscores=True) == name


def test_brackets_are_escaped_as_a_prompt_wants_them():
    assert tagger.written("ganyu_(genshin_impact)", escape_brackets=True) == r"ganyu \(genshin impact\)"
    assert tagger.written("(o)_(o)", escape_brackets=True) == r"\(o\)_\(o\)"
    assert tagger.written("ganyu_(genshin_impact)") == "ganyu (genshin impact)"


def test_a_comma_in_a_tag_makes_no_two_of_it():
    assert "," not in tagger.written("hello,_world")


def test_words_stand_once_in_whatever_spelling():
    words = ["mytag", "long hair", "Long_Hair", r"ganyu \(x\)", "ganyu (x)", "", "hat"]
    assert tagger.joined(words, spelled) == r"mytag, long hair, ganyu \(x\), hat"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("smile, Long_Hair", "mytag, smile, Long_Hair, hat"),
        ("smile, long hair,  ", "mytag, smile, long hair, hat"),
        ("smile，long hair", "mytag, smile，long hair, hat"),
        ("A girl stands there.", "mytag, A girl stands there., long hair, hat"),
        ("\r\n smile \r\nsecond line, hat\r\n", "\r\n mytag, smile, long hair, hat\r\nsecond line, hat\r\n"),
        (" \n", "mytag, long hair, hat"),
    ],
)
def test_a_persons_own_words_stay_as_they_are(before, after):
    assert tagger.extended(before, "mytag", ["long hair", "hat"], spelled) == after


def test_a_caption_that_lacks_nothing_stays_to_the_letter():
    text = "mytag ,hat,  long_hair ,\nmore"
    assert tagger.extended(text, None, ["hat", "long hair"], spelled) == text


# ---- what it saw, remembered ----


@pytest.fixture
def table(tmp_path):
    return tagger.Table(tmp_path / "t.csv", ["general", "hat", "miku"], [RATING, GENERAL, CHARACTER])


FOUND = [Tag("hat", GENERAL, 0.5), Tag("miku", CHARACTER, 0.25), Tag("general", RATING, 0.0625)]


def test_what_was_seen_comes_back_in_the_next_run(tmp_path, table):
    (tmp_path / "图 1.png").write_bytes(b"picture")
    with tagger.Sightings(tmp_path, table, "wd 1") as sightings:
        assert sightings.get(tmp_path / "图 1.png", 0.1) is None
        sightings.put(tmp_path / "图 1.png", FOUND, 0.1)
        assert sightings.get(tmp_path / "图 1.png", 0.1) == FOUND
    with tagger.Sightings(tmp_path, table, "wd 1") as sightings:
        assert sightings.get(tmp_path / "图 1.png", 0.3) == FOUND
        assert sightings.get(tmp_path / "图 1.png", 0.05) is None  # rarer tags were not kept
    with tagger.Sightings(tmp_path, table, "wd 2") as sightings:
        assert sightings.get(tmp_path / "图 1.png", 0.1) is None  # another model


def test_a_changed_image_is_looked_at_again(tmp_path, table):
    image = tmp_path / "1.png"
    image.write_bytes(b"picture")
    with tagger.Sightings(tmp_path, table, "wd") as sightings:
        sightings.put(image, FOUND, 0.1)
        image.write_bytes(b"another picture")
        assert sightings.get(image, 0.1) is None
        sightings.put(image, FOUND[:1], 0.1)
        assert sightings.get(image, 0.1) == FOUND[:1]


@pytest.mark.parametrize("end", [b'{"picture": "1.png", "fi', b"null\n", b"\x00\xff\n", b'{"picture": 1}\n'])
def test_half_a_line_of_a_killed_run_spoils_nothing(tmp_path, table, end):
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(b"picture")
    with tagger.Sightings(tmp_path, table, "wd") as sightings:
        sightings.put(tmp_path / "1.png", FOUND, 0.1)
    with open(tmp_path / tagger.Sightings.FILE, "ab") as file:
        file.write(end)
    with tagger.Sightings(tmp_path, table, "wd") as sightings:
        sightings.put(tmp_path / "2.png", FOUND[:1], 0.1)
    with tagger.Sightings(tmp_path, table, "wd") as sightings:
        assert sightings.get(tmp_path / "1.png", 0.1) == FOUND
        assert sightings.get(tmp_path / "2.png", 0.1) == FOUND[:1]
