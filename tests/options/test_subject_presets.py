"""preset = "garment": what suits a subject, where the user has not said otherwise."""

import pytest

from library.messages import set_language
from library.options.checks import check_values
from library.options.subject_presets import PRESETS, TRAIN, with_preset
from library.options.tools import TOOLS
from library.options.training import OPTIONS, TRAINING


@pytest.fixture(autouse=True)
def english():
    set_language("en")


def declared_of(script):
    return TRAINING if script == TRAIN else TOOLS[script]


@pytest.mark.parametrize("name", PRESETS)
def test_every_row_is_a_value_that_the_option_takes(name):
    assert PRESETS.keys() == set(OPTIONS["preset"].choices)
    for row in PRESETS[name]:
        _, problems, _ = check_values(declared_of(row.script), {row.name: row.value}, {})
        assert problems == [], row
        assert not row.chinese.isascii()


def test_what_is_still_as_delivered_is_set_and_told_with_its_reason():
    values, where, lines = with_preset(
        "garment", "sort_into_folders.py", {"repeats": None}, {}, TOOLS["sort_into_folders.py"]
    )
    assert values == {"repeats": 6}
    assert where == {"repeats": 'preset "garment"'}
    assert lines == ['preset "garment": repeats = 6 (6_mycloths: for 20 to 30 images, at most 10)']


def test_what_the_user_changed_stays_and_is_named():
    values, _, lines = with_preset("style", TRAIN, {"network_dim": 8}, {}, TRAINING)
    assert values["network_dim"] == 8
    assert values["network_alpha"] == 32.0
    assert 'preset "style": yours stays: network_dim = 8' in lines


def test_a_value_of_a_json_preset_is_the_users_even_where_it_is_the_delivered_one():
    values, *_ = with_preset("style", TRAIN, {"network_dim": 32}, {"network_dim": "a.json:3"}, TRAINING)
    assert values["network_dim"] == 32


def test_the_recipes_of_garment_and_face_are_as_passed_on():
    rows = {(name, row.script, row.name): row.value for name, those in PRESETS.items() for row in those}
    garment = {name: value for (preset, _, name), value in rows.items() if preset == "garment"}
    assert (garment["repeats"], garment["max_train_epochs"]) == (6, 10)
    assert {"*skirt", "*shirt", "serafuku", "*uniform", "*sleeves"} <= set(garment["delete_tags"])
    face = {name: value for (preset, _, name), value in rows.items() if preset == "face"}
    assert (face["repeats"], face["max_train_epochs"], face["save_every_n_epochs"]) == (10, 10, 2)
    assert (face["network_dim"], face["network_alpha"], face["faces"]) == (32, 32.0, "recipe")


@pytest.mark.parametrize("preset", [None, "garments", 3])
def test_no_preset_sets_nothing(preset):
    assert with_preset(preset, TRAIN, {"network_dim": 32}, {}, TRAINING) == ({"network_dim": 32}, {}, [])


def test_tags_of_a_preset_that_no_caption_has_are_not_told_one_by_one(tmp_path, capsys):
    from PIL import Image

    from library.options.checks import check_tool
    from library.options.subject_presets import GARMENT_TAGS
    from tools import edit_tags

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("mytag, white shirt, smile", encoding="utf-8")
    values = dict(images_dir=str(tmp_path), output_dir=str(tmp_path / "page"), delete_tags=list(GARMENT_TAGS))
    edit_tags.run(check_tool(TOOLS["edit_tags.py"], values, {}))
    said = capsys.readouterr().out
    assert "is in no caption" not in said
    assert "white shirt (1)" in said
