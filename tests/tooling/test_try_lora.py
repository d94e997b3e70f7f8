"""tools/try_lora.py: the grid that was asked for, each image once; what is wrong is told before a model is loaded."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from library import families
from library.images import contact_sheet, generation_parameters
from library.messages import Stopped, UserError, set_language
from library.options.checks import ConfigError, check_tool
from library.options.tools import TOOLS
from library.storage import lora_file, metadata
from tests.conftest import write_diffusers_folder
from tests.lora_files.test_merging import random_lora
from tools import try_lora

pytestmark = pytest.mark.slow("draws with a tiny model")

TRIGGER = {
    "ss_tag_frequency": json.dumps({"10_mytag": {"mytag": 20, "hat": 7}}),
    "ss_base_model_version": "sd_v1",
    "ss_network_dim": "2",
}


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    """A folder with two LoRAs for the tiny SD 1.x, and one for SDXL."""
    folder = tmp_path_factory.mktemp("lora")
    for number, name in enumerate(("mytag", "liyuu")):
        entries = TRIGGER if name == "mytag" else {"ss_output_name": "Liyuu the fish"}
        tensors = random_lora(families.tiny("sd1"), seed=number, size=0.3)
        lora_file.save_adapter(folder / f"{name}.safetensors", tensors, entries)
    sdxl = random_lora(families.tiny("sdxl"))
    lora_file.save_adapter(folder / "big.safetensors", sdxl, {"ss_base_model_version": "sdxl_base_v1-0"})
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny SD 1.x whose text encoder's states have a mean, as a trained one's have: weights lean on it."""
    family = families.tiny("sd1")
    torch.nn.init.constant_(family.text_encoder.final_layer_norm.bias, 0.5)
    return write_diffusers_folder(tmp_path_factory.mktemp("model") / "tiny", family)


@pytest.fixture
def settings(model, loras, tmp_path):
    def settings(**options):
        values = dict(
            pretrained_model_name_or_path=str(model),
            loras=[str(loras / "mytag.safetensors")],
            prompts=["mytag, (red:1.2) hat"],
            strengths=[0, 0.6],
            resolution=64,
            steps=2,
            device="cpu",
            output_dir=str(tmp_path / "tried"),
        )
        return check_tool(TOOLS["try_lora.py"], values | options, {})

    return settings


@pytest.fixture
def tried(settings, tmp_path):
    """tried(option=value, ...) -> the output folder, by a random model of kilobytes in two steps."""

    def tried(**options) -> Path:
        assert try_lora.run(settings(**options)) == 0
        return tmp_path / "tried"

    return tried


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def pixels(folder: Path) -> list[bytes]:
    """Of the images, in the order they were drawn; without what is written into the files."""
    return [Image.open(path).tobytes() for path in sorted((folder / "pictures").iterdir())]


def parameters_in(folder: Path) -> list[dict]:
    return [generation_parameters.read_parameters(path) for path in sorted((folder / "pictures").iterdir())]


# ---- the grid ----


def test_the_base_model_comes_once_then_each_lora_at_each_strength(tried, loras):
    folder = tried(
        loras=[str(loras / "mytag.safetensors"), str(loras / "liyuu.safetensors")],
        strengths=[0, 0.6, 1],
        prompts=["mytag", "a hat"],
        seeds=[4, 5],
    )
    assert [parameters["prompt"] for parameters in parameters_in(folder) if parameters["seed"] == 5] == [
        f"{prompt} {lora}".strip()
        for lora in ("", "<lora:mytag:0.6>", "<lora:mytag:1>", "<lora:liyuu:0.6>", "<lora:liyuu:1>")
        for prompt in ("mytag", "a hat")
    ]
    assert sorted(path.name for path in folder.glob("grid*")) == ["grid-0001-4.png", "grid-0002-5.png"]
    page = (folder / "summary.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 20
    assert all(f'href="pictures/{path.name}"' in page for path in (folder / "pictures").iterdir())
    assert 'href="grid-0001-4.png"' in page


def test_every_cell_is_another_image_and_strength_0_is_the_base_model(tried):
    folder = tried(loras=None, strengths=[1])
    base = files(folder / "pictures")
    again = tried(strengths=[0, 0.3, 1])
    assert len(set(pixels(again))) == 3
    assert base.items() <= files(again / "pictures").items()  # the base model's is the one that was there


def test_loras_of_the_prompt_act_in_every_row(tried, loras):
    folder = tried(prompts=["a hat <lora:liyuu:0.5>", "a hat"], lora_dir=str(loras))
    digest = {name: metadata.web_ui_hash(loras / f"{name}.safetensors") for name in ("mytag", "liyuu")}
    assert [parameters["lora_hashes"] for parameters in parameters_in(folder)] == [
        f"liyuu: {digest['liyuu']}",
        None,
        f"liyuu: {digest['liyuu']}, mytag: {digest['mytag']}",
        f"mytag: {digest['mytag']}",
    ]
    assert len(set(pixels(folder))) == 4


def test_a_lora_in_the_row_is_the_lora_in_the_prompt(tried, loras, tmp_path):
    """The same image, whichever way it was asked for; two at 0.6 and 0.5 as the user's recipe says."""
    (row,) = pixels(tried(strengths=[0.6]))
    named = tried(loras=None, prompts=["mytag, (red:1.2) hat <lora:mytag:0.6>"], lora_dir=str(loras))
    assert parameters_in(named)[0]["prompt"] == "mytag, (red:1.2) hat <lora:mytag:0.6>"
    assert len(parameters_in(named)) == 1  # it was there: its parameters are the same
    both = tried(loras=None, prompts=["mytag, (red:1.2) hat <lora:mytag:0.6> <lora:liyuu:0.5>"], lora_dir=str(loras))
    assert pixels(both)[1] != row


def test_the_second_run_draws_nothing_and_a_new_prompt_only_itself(tried, capsys):
    before = files(tried())
    assert "2 images generated" in capsys.readouterr().out
    assert files(tried()) == before
    said = capsys.readouterr().out
    assert "2 of 2 images already exist\nnothing left to generate" in said
    after = files(tried(prompts=["mytag, (red:1.2) hat", "new"]))
    assert before.items() <= after.items()
    assert len(after) == len(before) + 3  # two images and a grid
    assert "2 of 4 images already exist" in capsys.readouterr().out


def test_a_lora_that_was_trained_anew_is_drawn_anew(tried, loras, tmp_path):
    copy = tmp_path / "mytag.safetensors"
    shutil.copy(loras / "mytag.safetensors", copy)
    before = files(tried(loras=[str(copy)], strengths=[1]))
    shutil.copy(loras / "liyuu.safetensors", copy)
    after = files(tried(loras=[str(copy)], strengths=[1]))
    assert before.items() <= after.items()
    assert len(after) == 4


def test_ctrl_c_keeps_what_was_drawn(tried, settings, monkeypatch, capsys, tmp_path):
    write = try_lora.write

    def stopped(settings, number, cell, image):
        if number == 2:
            raise KeyboardInterrupt
        return write(settings, number, cell, image)

    monkeypatch.setattr(try_lora, "write", stopped)
    with pytest.raises(Stopped):
        try_lora.run(settings())
    assert "stopped: 1 of 2 images done. Run it again to continue" in capsys.readouterr().out
    monkeypatch.undo()
    first = files(tmp_path / "tried")
    assert first.items() <= files(tried()).items()
    assert "1 of 2 images already exist" in capsys.readouterr().out


def test_an_image_says_how_it_was_made_as_the_web_ui_does(tried, loras):
    folder = tried(strengths=[0.6], negative_prompt="(bad:1.3)", hires_scale=1.5, hires_strength=0.4, clip_skip=2)
    image = Image.open(folder / "pictures" / "00001-1.png")
    assert image.size == (96, 96)
    prompt, negative, facts = image.info["parameters"].split("\n")
    assert prompt == "mytag, (red:1.2) hat <lora:mytag:0.6>"
    assert negative == "Negative prompt: (bad:1.3)"
    digest = metadata.web_ui_hash(loras / "mytag.safetensors")
    for fact in (
        "Steps: 2, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64, Model hash: ",
        "Clip skip: 2, Schedule type: Uniform, RNG: CPU",
        "Denoising strength: 0.4, Hires upscale: 1.5, Hires upscaler: Latent",
        f'Lora hashes: "mytag: {digest}"',
    ):
        assert fact in facts


def test_the_hash_is_that_of_the_web_ui(loras):
    """The first 12 digits of sshs_model_hash, which the trainer writes and the web UI works out."""
    entries = metadata.of_file(loras / "mytag.safetensors")
    assert metadata.web_ui_hash(loras / "mytag.safetensors") == entries["sshs_model_hash"][:12]


def test_no_guidance_and_unusual_sizes(tried, capsys):
    folder = tried(guidance_scale=1, resolution="76,64", strengths=[0])
    assert Image.open(folder / "pictures" / "00001-1.png").size == (72, 64)
    assert "sides must be multiples of 8; the remainder is cut" in capsys.readouterr().out


# ---- what is told ----


def told(settings, **options) -> list[str]:
    with pytest.raises(UserError) as caught:
        try_lora.run(settings(**options))
    return caught.value.problems


def test_all_problems_are_told_at_once(settings, loras, monkeypatch):
    monkeypatch.setattr("library.tooling.generate.choose_device", lambda *_: pytest.fail("too early"))
    problems = told(
        settings,
        loras=[str(loras / "mytg.safetensors"), "nothing/here.safetensors"],
        prompts=["a [b:c:3]", "fine", "a <lora:liyu:0.6>", "a <lora:mytag>"],
        lora_dir=str(loras),
        negative_prompt="<lora:x:1>",
    )
    text = "\n".join(problems)
    assert len(problems) == 5
    for line in (
        "mytg.safetensors: there is no such file. Did you mean mytag?",
        "here.safetensors: there is no such file. Train it first, or choose another",
        "prompt 1: [b:c:3]: prompt scheduling",
        'prompt 3: LoRA "liyu": not found in',
        "Did you mean liyuu?",
        "negative_prompt: <lora:x:1>: a LoRA has no effect",
    ):
        assert line in text


def test_a_lora_that_would_act_twice_is_told(settings, loras):
    (problem,) = told(settings, prompts=["a <lora:mytag:0.5>"])
    assert problem.startswith('prompt 1: "mytag" is also in loras, so it would be applied twice')


def test_a_lora_of_another_line_is_told(settings, loras):
    (problem,) = told(settings, loras=[str(loras / "big.safetensors")])
    assert re.match(
        r"big.safetensors: \d+ of its \d+ layers are not in this base model: .*It was made for SDXL", problem
    )


def test_a_file_that_is_none_is_told(settings, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"\0" * 40)
    (problem,) = told(settings, loras=[str(tmp_path / "broken.safetensors")])
    assert "broken.safetensors: cannot be read" in problem


def test_loras_are_found_by_name_title_and_in_subfolders(settings, loras, tmp_path):
    (tmp_path / "models" / "人物").mkdir(parents=True)
    shutil.copy(loras / "liyuu.safetensors", tmp_path / "models" / "人物" / "鲤鱼.safetensors")
    shutil.copy(loras / "mytag.safetensors", tmp_path / "models" / "MyTag.safetensors")
    folder = try_lora.LoraFolder(settings(lora_dir=str(tmp_path / "models"), loras=["鲤鱼"]))
    assert folder.listed("鲤鱼").path.name == "鲤鱼.safetensors"
    assert folder.named("mytag").name == "MyTag"
    assert folder.named("Liyuu the fish").name == "鲤鱼"
    shutil.copy(loras / "mytag.safetensors", tmp_path / "models" / "人物" / "MyTag.safetensors")
    folder = try_lora.LoraFolder(settings(lora_dir=str(tmp_path / "models")))
    with pytest.raises(UserError, match='LoRA "MyTag": there are 2 of this name'):
        folder.named("MyTag")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "prompts = .* is empty: nothing would be generated"),
        ({"hires_scale": 2, "hires_strength": 0.1, "steps": 200}, "needs a schedule of 200 / 0.1 steps"),
        ({"hires_scale": 2, "sampler": "pndm"}, "can't start from an image"),
    ],
)
def test_settings_that_cannot_be_are_told(settings, options, message):
    with pytest.raises(ConfigError, match=message):
        settings(**options)


def test_a_trigger_word_that_no_prompt_has_is_noted(tried, capsys):
    tried(prompts=["My_Tag, hat", "a hat"], strengths=[0.6])
    assert "note" in capsys.readouterr().out  # "my tag" is another word than "mytag"
    tried(prompts=["a hat, (MYTAG:1.1)"], strengths=[0.6])
    assert "note" not in capsys.readouterr().out
    set_language("zh")
    tried(prompts=["a hat"], strengths=[0.6])
    assert '注意：mytag 训练时的触发词是 "mytag"，提示词里都没有写，可能看不出效果' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"10_mytag": {"mytag": 5, "hat": 5}}, ["mytag"]),
        ({"10_mytag": {"MyTag": 2, "hat": 5}}, ["MyTag"]),
        ({"3_x": {"ohwx": 5, "hat": 4}}, ["ohwx"]),
        ({"3_x": {"a": 5, "b": 5}}, []),
        ({"1_person": {"person": 9}, "2_a": {"a": 1}, "2_b": {"b": 1}}, ["a", "b"]),
        ({"img": {}}, []),
        ("broken", []),
    ],
)
def test_trigger_words_are_read_from_the_metadata(tags, words):
    entries = {"ss_tag_frequency": json.dumps(tags), "ss_reg_dataset_dirs": '{"1_person": {"n_repeats": 1}}'}
    assert metadata.trigger_words(entries) == words


# ---- the sheet ----


def test_a_sheet_has_every_image_at_its_place_and_room_for_labels():
    images = [[Image.new("RGB", (64, 64), colour) for colour in row] for row in (("red", "lime"), ("blue", "black"))]
    drawn = contact_sheet.sheet(images, ["one", "two"], ["a long prompt, of several words", "b"], "title")
    right, bottom = drawn.width - 100, drawn.height - 100
    assert drawn.getpixel((right, bottom)) == (0, 0, 0)
    assert drawn.getpixel((right - 196, bottom)) == (0, 0, 255)
    assert drawn.getpixel((right, bottom - 196)) == (0, 255, 0)


def test_large_images_are_reduced_and_small_ones_enlarged_by_whole_numbers():
    def side(size):
        sheet = contact_sheet.sheet([[Image.new("RGB", (size, size), "red")]], [""], [""])
        columns = [x for x in range(sheet.width) if sheet.getpixel((x, sheet.height - 20)) == (255, 0, 0)]
        return len(columns)

    assert (side(64), side(300), side(1024)) == (192, 300, 512)


def test_labels_are_broken_where_words_end_and_chinese_anywhere():
    letters = contact_sheet.font(16)
    for text in ("mytag, standing, white background", "红色的猫站在白色的背景前面，向左看", "x" * 90):
        lines = contact_sheet.wrapped(text, letters, 120)
        assert all(letters.getlength(line) <= 120 for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert contact_sheet.wrapped("white background", letters, 120) == ["white", "background"]
    assert not any(line.startswith("，") for line in contact_sheet.wrapped("猫猫猫猫，猫", letters, 64))


def test_the_weights_are_the_base_models_again(tried, monkeypatch):
    from library.tooling import generate

    opened = generate.open_for_generation
    kept = {}

    def watched(*arguments, **options):
        family = opened(*arguments, **options)
        kept["family"], kept["before"] = family, {k: v.clone() for k, v in family.unet.state_dict().items()}
        return family

    monkeypatch.setattr(generate, "open_for_generation", watched)
    tried()
    assert all(torch.equal(kept["before"][name], value) for name, value in kept["family"].unet.state_dict().items())


def test_a_lora_of_the_text_encoder_alone_acts_in_its_rows(tried, tmp_path):
    """The prompt is encoded anew where the weights are others."""
    tensors = {key: tensor for key, tensor in random_lora(families.tiny("sd1")).items() if key.startswith("lora_te")}
    lora_file.save_adapter(tmp_path / "words.safetensors", tensors)
    folder = tried(loras=[str(tmp_path / "words.safetensors")], strengths=[0, 0.5, 1])
    assert len(set(pixels(folder))) == 3
