"""What is said once, in lora_train_command_line.py, and used by the scripts in tools/."""

import pytest

from library.messages import set_language
from library.options import parameter_block, shared
from library.options.checks import ConfigError, check_tool
from library.options.declaration import PROJECT, Given
from library.options.tools import TOOLS
from library.options.training import OPTIONS

MODEL = str(PROJECT / "library" / "miniature" / "model")
MAIN = "lora_train_command_line.py"


@pytest.fixture(autouse=True)
def english():
    set_language("en")


def settings(file, tmp_path, own=None, **main):
    """The settings of a script whose block is as delivered, but for `own`; and the line on them."""
    declared = TOOLS[file]
    block = {name: option.in_script for name, option in declared.options.items()} | (own or {})
    main = {"pretrained_model_name_or_path": MODEL} | main
    given = Given(main, {name: f"{MAIN}:{number}" for number, name in enumerate(main, 20)}, [], [])
    values, where, line = shared.filled(block, {}, declared, given, tmp_path)
    for folder in ("images_dir", "train_data_dir"):
        if folder in values:
            (tmp_path / values[folder]).mkdir(parents=True, exist_ok=True)
    if file == "prepare_images.py":
        values["resolution"] = 512  # the script decides "auto"
    return check_tool(declared, values, where), line


def test_three_edits_in_the_main_block_reach_every_script(tmp_path):
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"")
    main = dict(pretrained_model_name_or_path=str(model), images_dir="mine", trigger_word="ohwx")
    prepared = str(tmp_path / "output" / "prepared")
    of = {file: settings(file, tmp_path, **main)[0] for file in list(TOOLS)[:5]}
    assert of["prepare_images.py"].images_dir == str(tmp_path / "mine")
    assert of["prepare_images.py"].output_dir == prepared
    assert {of[file].images_dir for file in ("tag_images.py", "edit_tags.py", "sort_into_folders.py")} == {prepared}
    assert of["tag_images.py"].trigger_word == of["edit_tags.py"].trigger_word == "ohwx"
    assert of["sort_into_folders.py"].concept == "ohwx"
    assert of["sort_into_folders.py"].output_dir == of["make_reg_images.py"].train_data_dir
    assert of["make_reg_images.py"].pretrained_model_name_or_path == str(model)
    trial, _ = settings("try_lora.py", tmp_path, **main)
    assert trial.loras == [str(tmp_path / "output" / "ohwx.safetensors")]
    assert trial.prompts == ["ohwx, standing, white background", "standing, white background"]


def test_a_block_of_its_own_wins_and_only_the_rest_is_told(tmp_path):
    tags, line = settings("tag_images.py", tmp_path, own=dict(trigger_word="other"), trigger_word="ohwx")
    assert tags.trigger_word == "other"
    assert line == ""
    none, _ = settings("tag_images.py", tmp_path, own=dict(trigger_word=""), trigger_word="ohwx")
    assert not none.trigger_word
    _, line = settings("tag_images.py", tmp_path, trigger_word="ohwx")
    assert line == "from lora_train_command_line.py: trigger word ohwx"


def test_a_mistake_is_told_with_its_line_in_the_main_block(tmp_path):
    with pytest.raises(Exception, match=rf"{MAIN}:21 \(trigger_word\): concept = \"a, b\" contains a comma"):
        settings("sort_into_folders.py", tmp_path, trigger_word="a, b")


def test_sizes_of_buckets_are_those_of_the_training(tmp_path):
    drawn, _ = settings("make_reg_images.py", tmp_path, resolution=768, min_bucket_reso=256, enable_bucket=False)
    assert (drawn.resolution, drawn.min_bucket_reso, drawn.enable_bucket) == (768, 256, False)
    drawn, _ = settings("make_reg_images.py", tmp_path)
    assert (drawn.resolution, drawn.min_bucket_reso, drawn.enable_bucket) == ("auto", None, True)


def own_set(folder):
    (folder / "3_ohwx").mkdir(parents=True)
    (folder / "3_ohwx" / "a.png").write_bytes(b"")
    return str(folder)


def decided(tmp_path, **values):
    block = dict(train_data_dir="auto", reg_data_dir="auto", output_dir=str(tmp_path / "output"))
    values, lines = shared.with_own_folders(block | values, tmp_path)
    return values["train_data_dir"], values["reg_data_dir"], " ".join(lines)


def test_auto_is_the_miniature_until_there_are_folders_of_ones_own(tmp_path):
    miniature = tuple(str(tmp_path / OPTIONS[name].default) for name in ("train_data_dir", "reg_data_dir"))
    assert decided(tmp_path) == (*miniature, "")
    (tmp_path / "output" / "prepared").mkdir(parents=True)
    *folders, told = decided(tmp_path)
    assert tuple(folders) == miniature
    assert "not yours" in told
    own = own_set(tmp_path / "output" / "train")
    train, reg, told = decided(tmp_path)
    assert (train, reg) == (own, None)
    assert 'train_data_dir = "auto": the images that tools/sort_into_folders.py put into output/train' in told
    drawn = own_set(tmp_path / "output" / "reg")
    assert decided(tmp_path)[:2] == (own, drawn)
    assert decided(tmp_path, reg_data_dir=None)[:2] == (own, None)
    other = str(tmp_path / "elsewhere")
    assert decided(tmp_path, train_data_dir=other) == (other, drawn, "")


def test_the_result_is_named_after_the_trigger_word_unless_it_has_a_name(tmp_path):
    def name(**values):
        return shared.with_own_folders(values, tmp_path)[0].get("output_name")

    assert name(output_name="auto", trigger_word="ohwx") == "ohwx"
    assert name(output_name="auto", trigger_word=None) == "mytag"
    assert name(output_name="mine", trigger_word="ohwx") == "mine"
    assert name(trigger_word="ohwx") is None


def test_the_miniatures_images_beside_ones_own_are_told(tmp_path):
    own_set(tmp_path / "output" / "train")
    miniature = str(tmp_path / OPTIONS["train_data_dir"].default)
    *_, told = decided(tmp_path, train_data_dir=miniature)
    assert "your own images in output/train are not trained" in told


def test_the_delivered_main_block_names_what_is_shared():
    names = {option.shared for declared in TOOLS.values() for option in declared.options.values()}
    plain = {name for name in names if isinstance(name, str) and "{" not in name}
    assert plain <= set(OPTIONS)
    variables = parameter_block.variables_of(PROJECT / MAIN)
    assert {"images_dir", "trigger_word", "train_data_dir", "reg_data_dir", "preset"} <= variables.keys()


def test_the_step_numbers_of_the_scripts_are_those_of_the_readmes():
    steps = {"prepare_images.py": 2, "tag_images.py": 3, "edit_tags.py": 3, "sort_into_folders.py": 4}
    for file, number in (steps | {"make_reg_images.py": 5}).items():
        assert TOOLS[file].title.startswith(f"Step {number}")
        assert f"第 {number} 步" in TOOLS[file].title
        for readme in ("README.md", "README.zh-CN.md"):
            text = (PROJECT / readme).read_text(encoding="utf-8")
            section = text.partition(f"### {number}.")[2].partition("\n### ")[0]
            assert f"python tools/{file}" in section, (file, readme)


def test_the_doctor_runs_where_the_main_block_cannot_be_read_and_the_others_say_why(tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / MAIN).write_text(f'images_dir = "half\n{parameter_block.MARK}\n', encoding="utf-8")
    script = tmp_path / "tools" / "doctor.py"
    assert parameter_block._main_for(script, TOOLS["doctor.py"]).values == {}
    with pytest.raises(ConfigError, match=MAIN):
        parameter_block._main_for(script, TOOLS["tag_images.py"])
