"""Every fault that the doctor knows is made here, and must be seen; a clean set is all green."""

import dataclasses
import importlib.metadata
import json
import os
import random
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image, ImageDraw, ImageFilter, PngImagePlugin

from library.messages import Note, say, set_language
from library.options import parameter_block
from library.options.declaration import PROJECT
from library.reporting import findings as doctor
from library.reporting.findings import Finding, of_line
from library.tooling import preflight
from library.tooling.preflight import examine
from library.training import dataset_findings

MINIATURE = PROJECT / "library" / "miniature"


@contextmanager
def no_bar(total):
    yield SimpleNamespace(update=lambda: None)


class Case:
    """A small project of one's own: a set, a base model and a script, all in order until a test spoils something."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.train, self.reg = folder / "train" / "10_mytag", folder / "reg" / "1_world"
        shutil.copytree(MINIATURE / "train" / "10_mytag", self.train)
        self.reg.mkdir(parents=True)
        rng = random.Random(0)
        for number in range(12):
            image = Image.new("RGB", (64, 64), tuple(rng.randrange(256) for _ in range(3)))
            pen = ImageDraw.Draw(image)
            for _ in range(4):
                corner = rng.randrange(50), rng.randrange(50)
                box = (*corner, corner[0] + rng.randrange(5, 40), corner[1] + rng.randrange(5, 40))
                pen.rectangle(box, fill=tuple(rng.randrange(256) for _ in range(3)))
            image.save(self.reg / f"{number}.png")
            (self.reg / f"{number}.txt").write_text("square, center", encoding="utf-8")
        (folder / "mini").symlink_to(MINIATURE / "model")
        self.values = dict(
            pretrained_model_name_or_path=str(folder / "mini"),
            train_data_dir=str(folder / "train"),
            reg_data_dir=str(folder / "reg"),
            output_dir=str(folder / "out"),
        )
        self.extra = ""  # lines of the script, as the user has written them

    @property
    def images(self) -> list[Path]:
        return sorted(self.train.glob("*.png"))

    def caption(self, image: Path) -> Path:
        return image.with_suffix(".txt")

    def script(self) -> Path:
        path = self.folder / "my script.py"
        lines = [f"{name} = {value!r}" for name, value in self.values.items()]
        whole = [] if "validation_split" in self.values else ["validation_split = 0"]  # what is counted is all
        text = "\n".join(
            [*lines, self.extra, *whole, parameter_block.MARK, "raise SystemExit('this must not run')", ""]
        )
        path.write_text(text, encoding="utf-8")
        return path

    def examine(self, *, machine: bool = False, script: Path | None = None):
        return examine(script or self.script(), similarity=6, with_machine=machine, progress=no_bar)

    def sees(self, level: str, topic: str, text: str, cure: str = "", images: int | None = None, **options) -> Finding:
        """The one finding of this kind."""
        findings = self.examine(**options).findings
        found = [one for one in findings if (one.level, one.topic) == (level, topic) and text in one.text]
        assert len(found) == 1, "\n".join(f"{one.level} {one.topic}: {one.line}" for one in findings)
        assert cure in found[0].cure, found[0]
        if images is not None:
            assert len(found[0].images) == images
        return found[0]


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


def wrong(findings):
    return [f"{one.level} {one.topic}: {one.line}" for one in findings if one.level != "green"]


# ---- in order ----


def test_a_clean_set_is_all_green_and_every_topic_was_looked_at(case):
    findings = case.examine(machine=True).findings
    assert wrong(findings) == []
    assert {one.topic for one in findings} == set(doctor.TOPICS)


def test_what_is_delivered_has_nothing_red(tmp_path):
    findings = examine(
        PROJECT / "lora_train_command_line.py", similarity=6, with_machine=False, progress=no_bar
    ).findings
    assert [line[:30] for line in wrong(findings)] == ["amber pictures: 14 images are "]  # are enlarged, as is meant


def test_the_script_is_read_and_what_stands_below_its_block_is_not_run(case):
    case.extra = 'import os\n_home = os.path.join("a", "b")\noutput_name = "x" * 3'
    assert case.examine().config.output_name == "xxx"


# ---- parameters ----


def test_mistakes_in_the_parameters_do_not_end_it(case):
    case.values |= dict(network_dims=8, seed="x", lr_warmup_steps=5, lr_scheduler="constant")
    seen = case.examine()
    red = [one.line for one in seen.findings if one.level == "red"]
    assert len(red) == 3
    assert any("network_dims: there is no such parameter. Did you mean network_dim?" in line for line in red)
    assert any("my script.py:6: seed" in line for line in red)
    assert any("my script.py:7: lr_warmup_steps" in line for line in red)
    assert seen.plan.step_count  # went on with the defaults
    assert seen.config.lr_warmup_steps == 0


def test_a_training_folder_that_is_missing_is_not_replaced_by_the_delivered_one(case):
    case.values["train_data_dir"] = str(case.folder / "trian")
    seen = case.examine()
    assert seen.plan is None
    (red,) = [one for one in seen.findings if one.level == "red"]
    assert red.text.endswith(f'does not exist: there is no "trian" in "{case.folder}"')
    assert red.cure == f'Did you mean "{case.folder / "train"}"?'


def test_no_length_given_is_told_once_and_the_rest_is_looked_at(case):
    case.values |= dict(max_train_epochs=None, max_train_steps=None)
    case.sees("red", "parameters", "how long should it train?", "Set one of them")
    assert case.examine().plan.epoch_count == 10


def test_a_tool_whose_block_is_no_python_is_told(tmp_path, monkeypatch):
    (tmp_path / "tools").mkdir()
    block = f'# mine\nimages_dir = "C:\\Users\\me"\n{parameter_block.MARK}\n'
    (tmp_path / "tools" / "tag_images.py").write_text(block, encoding="utf-8")
    monkeypatch.setattr(preflight, "PROJECT", tmp_path)
    examination = preflight.Examination()
    preflight.examine_blocks(examination)
    (finding,) = examination.findings
    assert (finding.level, finding.topic) == ("red", "parameters")
    assert finding.line.startswith("tag_images.py:2: \\ in quotes is special")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('output_name = "a\n', 5, "not valid Python"),
        ("output_name = mytag", 5, "NameError: name 'mytag' is not defined"),
        ("seed = 1 / 0", 5, "ZeroDivisionError"),
    ],
)
def test_a_script_that_python_cannot_read_is_told_with_its_line(case, text, line, words):
    case.extra = text
    (finding,) = case.examine().findings
    assert finding.level == "red"
    assert finding.text.startswith(f"my script.py:{line}: ")
    assert words in finding.line


def test_another_program_is_not_run(case, tmp_path):
    other = tmp_path / "other.py"
    other.write_text("raise SystemExit('this must not run')")
    (finding,) = case.examine(script=other).findings
    assert "not a copy of lora_train_command_line.py" in finding.text


def test_a_toml_file_is_read_as_well(case, tmp_path):
    lines = [f"{name} = '{value}'" for name, value in case.values.items()]
    (tmp_path / "x.toml").write_text("\n".join([*lines, "network_dims = 3"]), encoding="utf-8")
    seen = case.examine(script=tmp_path / "x.toml")
    assert [one.text for one in seen.findings if one.level == "red"] == [
        "x.toml:5: network_dims: there is no such parameter"
    ]
    assert seen.plan.step_count


def test_presets_of_a_queue_are_checked_too(case, tmp_path):
    queue = tmp_path / "queue"
    queue.mkdir()
    (queue / "good.json").write_text(json.dumps({"network_dim": 4}))
    (queue / "bad.json").write_text(json.dumps({"network_dim": -4}))
    case.values["multi_run_folder"] = str(queue)
    assert case.sees("red", "parameters", "bad.json:1: ").line.startswith("bad.json:1: network_dim = -4")
    case.sees("green", "parameters", "2 presets are trained one after another")


def test_the_miniature_beside_ones_own_set_is_red(case):
    del case.values["pretrained_model_name_or_path"]
    case.sees("red", "parameters", "still the built-in miniature's: set your own")


def test_doubts_of_the_check_are_amber(case):
    case.values |= dict(keep_tokens=1, learning_rate=3.0)
    case.sees("amber", "parameters", "keep_tokens = 1 has no effect without shuffle_caption")
    case.sees("amber", "parameters", "learning_rate = 3.0 is far above the usual for AdamW")


@pytest.mark.parametrize(
    ("values", "text", "cure"),
    [
        (
            dict(max_train_epochs=2),
            "240 steps in 2 epochs, each image is seen about 20 times: too few to learn much",
            "max_train_epochs = 12 gives about 1,440 steps",
        ),
        (
            dict(max_train_epochs=80),
            "9,600 steps in 80 epochs, each image is seen about 800 times: a lot; it will probably overfit",
            "max_train_epochs = 12 gives about 1,440 steps",
        ),
        (
            dict(max_train_steps=10),
            "10 steps in 1 epoch, each image is seen about 1 time: too few to learn much",
            "max_train_steps = 1500 is a usual length",
        ),
        (
            dict(max_train_steps=3),
            "3 steps in 1 epoch, not even each image is seen: too few to learn much",
            "max_train_steps = 1500 is a usual length",
        ),
    ],
)
def test_unusual_lengths(case, values, text, cure):
    case.values |= values
    assert case.sees("amber", "parameters", " steps in ", cure).text == text


def test_lengths_that_epochs_cannot_cure():
    (few,) = doctor.steps(10, 10, 2, True)
    assert few.cure.endswith("by about 150")
    (fewer_images,) = doctor.steps(10, 10, 10, True)  # 150 times as many would be 1,500 views of each image
    assert fewer_images.cure.endswith("by about 30, and collect more images")
    (many,) = doctor.steps(50_000, 2, 500, True)
    assert "max_train_steps = 1500 ends it there" in many.cure
    assert [one.level for one in doctor.steps(400, 2, 5, True)] == ["green"]


def test_no_earlier_file_is_kept(case):
    case.values["save_every_n_epochs"] = None
    case.sees("amber", "parameters", "only the last file is kept", "Set save_every_n_epochs = 2")
    case.values["save_every_n_epochs"] = 10
    case.sees("amber", "parameters", "only the last file is kept")


def test_a_size_that_is_not_the_models(case):
    case.values["resolution"] = 128
    case.sees("amber", "parameters", "resolution 128 x 128, but the base model was trained", "Set resolution = 64")


def test_packages_that_an_option_needs(case):
    case.values["optimizer_type"] = "nowhere_to_be_found.Optimizer"
    case.sees("red", "machine", "needs the package nowhere_to_be_found", "pip install nowhere_to_be_found")
    found = list(doctor.missing_packages({"prodigyopt": "x", "tensorboard": "y"}, lambda name: name == "tensorboard"))
    assert [one.level for one in found] == ["red", "green"]


@pytest.mark.slow("plans the memory of several runs")
def test_a_name_that_is_taken_and_a_run_that_can_be_gone_on_with(case, monkeypatch):
    (case.folder / "out").mkdir()
    (case.folder / "out" / "mytag.safetensors").write_bytes(b"")
    case.sees("green", "parameters", "the next run will be named mytag-2, and nothing is overwritten", machine=True)

    ran_with = dataclasses.asdict(dataclasses.replace(case.examine().config, learning_rate=5e-4, seed=23))
    facts = dict(config=ran_with, name="mytag", seed=23)
    state = SimpleNamespace(facts=facts, position=SimpleNamespace(global_step=7), notices=[])
    monkeypatch.setattr(preflight, "find_state", lambda config: state)
    case.sees("green", "parameters", "mytag was stopped after step 7: the next start continues there", machine=True)
    assert wrong(case.examine(machine=True).findings) == []
    ran_with["network_dim"] = 99
    found = case.sees("red", "parameters", "mytag was stopped after step 7 and can be continued, but:", machine=True)
    assert "network_dim was 99 when the state was saved, and is 32 now" in found.text
    assert found.cure.startswith('restore these to continue, or set resume = "new"')


# ---- base model ----


def test_what_is_no_base_model_is_red_and_the_set_is_looked_at_all_the_same(case):
    (case.folder / "x.safetensors").write_bytes(b"<!doctype html>")
    case.values["pretrained_model_name_or_path"] = str(case.folder / "x.safetensors")
    seen = case.examine()
    assert [one.topic for one in seen.findings if one.level == "red"] == ["model"]
    assert seen.plan.step_count
    assert any(one.topic == "captions" for one in seen.findings)


def test_a_model_of_another_kind_than_the_parameters_say(case):
    case.values["v_parameterization"] = True
    case.sees("amber", "model", "training for v as you asked", "leave v_parameterization")


def test_a_vae_of_another_line_is_red(case):
    vae = case.folder / "vae"
    vae.mkdir()
    (vae / "config.json").write_text(json.dumps({"scaling_factor": 0.5}))
    case.values["vae"] = str(vae)
    case.sees("red", "model", "this VAE's latents are scaled by 0.5", "Choose a VAE")


# ---- images ----


def test_broken_images_are_named_and_shown(case):
    (case.train / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    found = case.sees("amber", "pictures", "broken.png: skipped", images=1)
    assert "open it in an editor and save it again as .png" in found.line


def test_images_that_are_much_enlarged_or_cut(case):
    Image.open(case.images[0]).resize((30, 30)).save(case.train / "tiny.png")
    case.caption(case.train / "tiny.png").write_text("mytag", encoding="utf-8")
    case.sees("amber", "pictures", "1 image is smaller than the bucket", "Use larger images", images=1)
    Image.effect_noise((500, 40), 90).save(case.train / "long.png")
    case.sees("amber", "pictures", "1 image loses more than a third by cropping", "Crop them yourself", images=1)


def test_animated_images(case):
    frames = [Image.effect_noise((64, 64), 90) for _ in range(2)]
    frames[0].save(case.train / "moves.webp", save_all=True, append_images=frames[1:])
    case.sees("amber", "pictures", "of animated images only the first frame is used: moves.webp")


def test_too_few_and_very_many(case):
    for image in case.images[5:]:
        image.unlink()
        case.caption(image).unlink()
    case.sees("amber", "pictures", "10_mytag: 5 images", "Collect 20 or more")
    (many,) = doctor.image_counts({"5_style": 2000})
    assert (many.level, "Fine for a style" in many.cure) == ("amber", True)


def test_an_image_alone_in_its_bucket(case):
    case.values["train_batch_size"] = 4
    Image.effect_noise((96, 40), 90).save(case.train / "wide.png")
    case.caption(case.train / "wide.png").write_text("mytag, wide", encoding="utf-8")
    case.sees("amber", "pictures", "buckets hold a single image", "raise bucket_reso_steps", images=1)
    assert not list(doctor.small_buckets({(64, 64): [Path("a")], (48, 80): [Path("b"), Path("c")]}, 1))


def test_the_same_image_at_another_size_within_a_folder(case):
    image = Image.open(case.images[0]).convert("RGB")
    image.resize((image.width * 2, image.height * 2)).save(case.train / "again.jpg", quality=80)
    case.caption(case.train / "again.jpg").write_text("mytag, waving", encoding="utf-8")
    found = case.sees("amber", "pictures", "1 image has duplicates", "prepare_images.py", images=2)
    assert "again.jpg" in found.text


def test_the_same_image_in_training_and_regularization_is_red(case):
    shutil.copy(case.images[0], case.reg / "copy.png")
    case.caption(case.reg / "copy.png").write_text("square", encoding="utf-8")
    case.sees("red", "pictures", "in both the training and the regularization set", "Delete it from the reg", images=2)


def test_the_same_image_in_two_concepts_is_red(case):
    other = case.folder / "train" / "10_zwei"
    shutil.copytree(case.train, other)
    for caption in other.glob("*.txt"):
        caption.write_text(caption.read_text(encoding="utf-8").replace("mytag", "zwei"), encoding="utf-8")
    findings = [one for one in case.examine().findings if "is in two concepts" in one.text]
    assert {one.level for one in findings} == {"red"}
    assert len(findings) == 12


def test_blurred_images_are_shown_the_worst_first(case):
    for name, radius in (("soft", 3), ("softer", 6)):
        sharp = Image.open(case.images[len(name) % 5]).convert("RGB").resize((256, 256), Image.Resampling.NEAREST)
        sharp.filter(ImageFilter.GaussianBlur(4 * radius)).save(case.train / f"{name}.png")
        case.caption(case.train / f"{name}.png").write_text(f"mytag, {name}", encoding="utf-8")
    found = case.sees("amber", "pictures", "2 images are blurred at the training size", "leave the bad ones out")
    assert [path.stem for path in found.images] == ["softer", "soft"]


def test_transparent_images_become_white_unless_they_are_masked(case):
    image = Image.open(case.images[0]).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 40, 40))
    image.save(case.images[0])
    case.sees("amber", "pictures", "1 image has transparent parts", "Set alpha_mask = True", images=1)
    case.values["alpha_mask"] = True
    case.sees("green", "pictures", "the transparent parts of 1 image are not trained")


def test_turned_and_coloured_images_are_in_order(case):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(case.images[0]).convert("RGB").save(case.train / "phone.jpg", exif=exif)
    case.sees("green", "pictures", "1 image is rotated upright by EXIF")
    (finding,) = doctor.natures({Path("a/b.png"): (False, 0.0, True)}, False)
    assert finding == (
        "green",
        "pictures",
        "1 image is converted to sRGB from the embedded color profile: a/b.png",
        "",
        (),
    )


def test_what_was_found_of_an_image_is_remembered(case, monkeypatch):
    monkeypatch.setattr("library.data.file_index.SETTLED_SECONDS", -60.0)
    first = case.examine().findings
    monkeypatch.setattr(preflight, "row_of", lambda *_: pytest.fail("looked again"))
    assert case.examine().findings == first


# ---- captions ----


def test_captions_with_another_ending_are_red(case):
    for image in case.images:
        case.caption(image).rename(image.with_suffix(".caption"))
    case.sees(
        "red", "captions", "have captions ending in .caption, which are not read", 'Set caption_extension = ".cap'
    )


@pytest.mark.parametrize(
    ("content", "text", "cure"),
    [
        ("mytag, 连衣裙".encode("gbk"), "is not UTF-8 and read as GB18030", "save them as UTF-8"),
        ("mytag，smile".encode(), "contains Chinese commas", ""),
        (b"", "caption file is empty", ""),
        (None, "1 of 12 images without a caption file", ""),
    ],
)
def test_captions_that_are_not_as_meant(case, content, text, cure):
    path = case.caption(case.images[0])
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    case.sees("amber", "captions", text, cure)


def test_captions_that_are_too_long(case):
    case.values["max_token_length"] = 75
    tags = ", ".join(f"unusual thing {number}" for number in range(60))
    case.caption(case.images[0]).write_text(f"mytag, {tags}", encoding="utf-8")
    case.sees("amber", "captions", "is longer than the 75 tokens that are read", "raise max_token_length")


def rewrite(case, change):
    for image in case.images:
        caption = case.caption(image)
        caption.write_text(change(image, caption.read_text(encoding="utf-8").strip()), encoding="utf-8")


def test_a_trigger_word_that_is_missing_is_told_once_and_is_red(case):
    rewrite(case, lambda image, text: text.replace("mytag, ", ""))
    found = [one for one in case.examine().findings if one.level == "red"]
    assert len(found) == 1
    assert '"mytag" is in none of its captions' in found[0].text
    assert "Add it to the captions" in found[0].cure


def test_a_trigger_word_that_some_images_lack_is_red_and_they_are_shown(case):
    first = case.images[0]
    rewrite(case, lambda image, text: text.replace("mytag, ", "") if image == first else text)
    assert case.sees("red", "captions", "missing in 1 of 12 captions", "edit_tags.py").images == (first,)


def test_an_everyday_word_is_amber(case):
    case.train.rename(case.train.with_name("10_dog"))
    case.train = case.train.with_name("10_dog")
    rewrite(case, lambda image, text: text.replace("mytag", "dog"))
    case.sees("amber", "captions", '"dog" is a common word', "Use a made-up word")


def test_images_that_are_held_out_are_looked_at_too(case):
    case.values |= dict(validation_split=0.5)
    held = {sample.image_path for sample in case.examine().plan.samples.validation}
    assert len(held) == 6
    for image in held:
        case.caption(image).write_text("standing, center", encoding="utf-8")
    assert set(case.sees("red", "captions", "`mytag` is missing in 6 of 12 captions").images) == held
    copy = case.train / "copy.png"
    shutil.copy(min(held), copy)
    case.caption(copy).write_text("mytag", encoding="utf-8")
    assert copy in case.sees("amber", "pictures", "duplicates").images


def test_a_trigger_word_that_is_shuffled_or_dropped(case):
    case.values["shuffle_caption"] = True
    case.sees("amber", "captions", '"mytag" is shuffled like all other tags', "set keep_tokens = 1")
    case.values |= dict(shuffle_caption=False, caption_tag_dropout_rate=0.1)
    case.sees("amber", "captions", '"mytag" is dropped at times like all other tags', "set keep_tokens = 1")
    case.values["keep_tokens"] = 1
    assert wrong(case.examine().findings) == []
    rewrite(case, lambda image, text: re.sub("^mytag, ([^,]+)", r"\1, mytag", text))  # second now
    case.sees("amber", "captions", "is not among the first keep_tokens = 1 tags of 12", 'Put "mytag" first')


def test_a_feature_that_stays_on_its_tag_is_told_with_what_to_delete(case):
    rewrite(case, lambda image, text: f"{text}, school uniform")
    case.sees("amber", "captions", "`school uniform` 100 %", 'delete_tags = ["school uniform"]')


# ---- regularization ----


def test_the_rule_with_its_numbers(case):
    case.sees("green", "regularization", "training 10 x 12 = 120, regularization 1 x 12 = 12")
    case.values["reg_rotate"] = False
    case.reg.rename(case.reg.with_name("20_world"))
    found = case.sees(
        "amber", "regularization", "training 10 x 12 = 120, regularization 20 x 12 = 240: training should have"
    )
    assert found.cure == "Rename 20_world to 10_world"


def test_more_regularization_images_than_can_be_used():
    rows = [("10_a", 1, 20)], [("1_b", 1, 300)]
    (found,) = doctor.regularization_rule(*rows, uses=[1] * 20, unused=280)
    assert found.level == "amber"
    assert "20 of them are enough" in found.cure
    (found,) = doctor.regularization_rule(*rows, uses=[1] * 20, unused=0)
    assert found.level == "green"  # they take turns until all were used


def test_fewer_regularization_images_than_training_images(case):
    for number in range(3, 12):
        (case.reg / f"{number}.png").unlink()
        (case.reg / f"{number}.txt").unlink()
    found = case.sees("amber", "regularization", "fewer regularization images than training images")
    assert "each is seen 40 times per epoch" in found.text
    assert "make_reg_images.py" in found.cure


def test_no_regularization_is_said_and_is_in_order(case):
    case.values["reg_data_dir"] = None
    case.sees("green", "regularization", "no regularization images")


def test_a_broken_regularization_folder_does_not_hide_the_training_set(case):
    shutil.rmtree(case.reg)
    seen = case.examine()
    assert [one.level for one in seen.findings if "reg_data_dir" in one.text] == ["red"]
    assert seen.plan.step_count


def test_a_trigger_word_in_regularization_captions_is_red(case):
    (case.reg / "3.txt").write_text("mytag, square", encoding="utf-8")
    found = case.sees("red", "regularization", '"mytag" is also on 1 regularization image', "Remove the word")
    assert [path.name for path in found.images] == ["3.png"]


def test_a_regularization_folder_named_as_the_concept_is_right_for_own_images_and_wrong_for_drawn_ones(case):
    for caption in case.reg.glob("*.txt"):
        caption.unlink()
    case.reg.rename(case.reg.with_name("1_mytag"))
    found = case.sees("amber", "regularization", "1_mytag: these regularization images have no caption files")
    assert "Fine if they show the same person" in found.cure
    drawn(case.reg.with_name("1_mytag") / "0.png", "mini")
    case.sees("red", "regularization", '"mytag" is also on 12 regularization images')


def drawn(path: Path, model: str) -> None:
    """Write what a web UI writes into its images."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text(
        "parameters", f"1girl, smile\nNegative prompt: bad\nSteps: 20, Model hash: 12, Model: {model}, Seed: 1"
    )
    Image.open(path).save(path, pnginfo=texts)


def test_regularization_images_of_another_model(case):
    drawn(case.reg / "0.png", "anything-v5")
    drawn(case.reg / "1.png", "MINI")
    found = case.sees("amber", "regularization", "1 regularization image was generated by another model (anything-v5)")
    assert [path.name for path in found.images] == ["0.png"]
    assert "make_reg_images.py" in found.cure
    drawn(case.reg / "0.png", "mini.safetensors")
    case.sees("green", "regularization", "2 images were generated by the base model")


def test_regularization_images_of_other_shapes(case):
    for number in range(6):
        Image.effect_noise((120, 40), 90 + number).save(case.reg / f"{number}.png")
    found = case.sees("amber", "regularization", "have shapes that no training image has", "make_reg_images.py")
    assert "60 of 120" in found.text


# ---- machine ----


def test_what_a_device_says_is_red(case):
    case.values["device"] = "cuda:77"
    case.sees("red", "machine", 'device = "cuda:77" is not there', machine=True)


def test_a_line_to_quote_names_system_and_versions(case):
    line = case.examine(machine=True).system
    assert line.startswith("quote this if you report a problem: python 3.")
    assert f"torch {importlib.metadata.version('torch')}; diffusers " in line


@pytest.mark.slow("plans the memory of a run")
def test_memory_that_does_not_suffice_is_red_with_every_way_out(case, monkeypatch):
    from library.hardware import memory

    monkeypatch.setattr(memory, "available", lambda device: 2**20)
    case.values |= dict(text_encoder_lr=0.0, int8_base=True)  # two ways less to count
    found = case.sees("red", "machine", "this run needs", machine=True)
    assert "train_batch_size = 1: " in found.cure


def test_a_full_disk_is_red(case, monkeypatch):
    from library.storage import disk

    monkeypatch.setattr(disk, "free", lambda path: 2**20)
    case.sees("red", "machine", "this run will write up to", "Free", machine=True)


def test_a_card_that_torch_cannot_use_is_red(case, monkeypatch):
    from library.hardware import rocm as cards

    monkeypatch.setattr(cards, "vendors", lambda: frozenset({"nvidia"}))
    monkeypatch.setattr(cards, "read_torch", lambda cards: SimpleNamespace(version="2.13.0+cpu", cuda=None, hip=None))
    found = case.sees("red", "machine", "this machine has a graphics card (NVIDIA)", machine=True)
    assert "torch 2.13.0+cpu is a CPU build and cannot use it: pip install torch" in found.line


def test_a_torch_that_cannot_be_loaded_is_told_and_ends_nothing(case, monkeypatch):
    from library.hardware import rocm as cards

    def breaks():
        raise OSError("libcudart.so.13: cannot open shared object file\nmore")

    monkeypatch.setattr(cards, "read_tree", breaks)
    found = case.sees("red", "machine", "did not finish: OSError: libcudart.so.13", machine=True)
    assert "Reinstall torch for this machine" in found.cure


# ---- lines of other parts ----


def test_a_line_becomes_a_finding_whose_cure_is_what_follows_the_first_sentence():
    assert of_line("a.png: broken. Save it anew. Or not", "pictures") == (
        "amber", "pictures", "a.png: broken", "Save it anew. Or not", ())  # fmt: skip
    line = "read as GBK, e.g. 侧面.txt: x.y 0.5. If that is wrong, save it"
    assert of_line(line, "captions").cure == "If that is wrong, save it"
    assert of_line("图片损坏。请重新保存", "pictures").cure == "请重新保存"
    assert of_line("how long? Give one", "parameters")[2:4] == ("how long?", "Give one")
    assert of_line("it was a.png. Did you mean b?", "parameters")[2:4] == ("it was a.png", "Did you mean b?")
    assert of_line("多久？请填一个。", "parameters")[2:4] == ("多久？", "请填一个。")
    note = Note("word is missing", "red", topic="captions", images=[Path("a")])
    assert of_line(note, "pictures") == ("red", "captions", "word is missing", "", (Path("a"),))
    assert note == "word is missing"  # and is printed as ever


def test_the_order_is_by_level_then_topic_and_nothing_is_said_twice():
    findings = [Finding(level, topic, "x") for topic in reversed(doctor.TOPICS) for level in doctor.LEVELS]
    ordered = doctor.in_order(findings * 2)
    assert [one[:2] for one in ordered] == [(level, topic) for level in doctor.LEVELS for topic in doctor.TOPICS]
    assert doctor.count(ordered) == {"red": 6, "amber": 6, "green": 6}


# ---- the short form, and the tool ----


def test_the_short_form_says_the_most_urgent_and_counts_all(case):
    first = case.images[0]
    rewrite(case, lambda image, text: text.replace("mytag, ", "") if image == first else text)
    case.values["save_every_n_epochs"] = None
    seen = case.examine()
    lines, counted = dataset_findings.short(seen.plan, seen.config, [Note("a", "red"), "b"])
    assert "missing in 1 of 12 captions" in lines[0]
    assert "only the last file is kept" in lines[1]
    assert counted == "doctor: 2 red, 2 amber; python tools/doctor.py shows all, with images"
    set_language("zh")
    assert dataset_findings.short(seen.plan, seen.config, [])[1].startswith("体检：红色 1 项，黄色 1 项")


def test_chinese_captions_are_told_before_the_run_unless_the_base_model_knows_them(case):
    rewrite(case, lambda image, text: "mytag, 红色的圆")
    seen = case.examine()
    assert [one.level for one in seen.findings if "know English only" in one.text] == ["red"]
    lines, _ = dataset_findings.short(seen.plan, seen.config, [])
    assert [line for line in lines if "12 of 24 captions (such as `红色的圆`)" in line]
    lines, _ = dataset_findings.short(seen.plan, seen.config, [], knows_english_only=False)
    assert not [line for line in lines if "English only" in line]


def test_what_previews_leave_out_is_told(case):
    case.values["sample_prompts"] = "a red circle <lora:other:0.5>"
    (line,) = [one.line for one in case.examine(machine=True).findings if "<lora:other:0.5>" in one.line]
    assert line.startswith("sample_prompts: <lora:other:0.5> left out: previews show the LoRA that is being trained")


def test_the_short_form_says_nothing_where_all_is_green(case):
    seen = case.examine()
    assert dataset_findings.short(seen.plan, seen.config, []) == ([], "")
    assert dataset_findings.short(seen.plan, seen.config, ["b"])[1].startswith("doctor: 0 red, 1 amber")


def test_copies_are_found_without_decoding_and_only_candidates_are_read(case, monkeypatch):
    first = case.images[0]
    shutil.copy(first, case.train / "copy.png")
    samples = case.examine().plan.samples.train
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("opened"))
    read = []
    whole = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path.name), whole(path))[1])
    (group,) = dataset_findings.exact_copies(samples)
    assert {sample.image_path.name for sample in group} == {"copy.png", first.name}
    assert len(read) < len(samples)


@pytest.fixture
def tool(case, tmp_path):
    """Run tools/doctor.py for the case, as a person would."""

    def run(**environment) -> subprocess.CompletedProcess:
        delivered = (PROJECT / "tools" / "doctor.py").read_text(encoding="utf-8")
        text = delivered.replace('"lora_train_command_line.py"', repr(str(case.script())), 1)
        text = text.replace("output_dir = None", f"output_dir = {str(tmp_path / 'page')!r}", 1)
        text = text.replace("check_machine = True", "check_machine = False", 1)
        text = text.replace("str(Path(__file__).resolve().parent.parent)", repr(str(PROJECT)))
        (tmp_path / "doctor.py").write_text(text, encoding="utf-8")
        command = [sys.executable, "-X", "importtime", str(tmp_path / "doctor.py")]
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, env=environment or None)

    return run


@pytest.mark.slow("starts the script")
def test_the_tool_writes_a_page_and_says_what_matters(case, tool, tmp_path):
    (case.train / "broken <b>.png").write_bytes(b"")
    case.values["network_dims"] = 3
    done = tool()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("fix this: my script.py:5: network_dims")
    assert lines[1].startswith("worth a look: ")
    assert "skipped: the file is empty" in lines[1]
    assert " 1 red, 1 amber, " in lines[-2]
    assert lines[-1] == f"full report with images: {tmp_path / 'page' / 'doctor.html'}"
    page = (tmp_path / "page" / "doctor.html").read_text(encoding="utf-8")
    assert "broken &lt;b&gt;.png" in page
    assert "broken <b>" not in page
    for words in ("Parameters", "Images", "Tags", "Regularization", "Base model", "samples per epoch", "mytag"):
        assert words in page
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line}
    assert "torch" not in imported  # check_machine = False: seconds less


@pytest.mark.slow("starts the script")
def test_the_tool_speaks_chinese(tool, tmp_path):
    done = tool(**os.environ | {"LC_ALL": "zh_CN.UTF-8", "LANGUAGE": "", "PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 0
    assert "红色 0 项" in done.stdout
    page = (tmp_path / "page" / "doctor.html").read_text(encoding="utf-8")
    assert "训练体检" in page
    assert 'lang="zh-CN"' in page


def test_both_languages_say_the_same_numbers():
    """A number that only one of them has is a slip."""
    rows = [("10_a", 1, 20)], [("1_b", 1, 300)]
    make = lambda: [  # noqa: E731
        *doctor.steps(100, 5, 20, True),
        *doctor.steps(100, 5, 20, False),
        *doctor.saving(9, 100, None, None),
        *doctor.resolution(512, 512, 1024),
        *doctor.image_counts({"a": 3, "b": 300}),
        *doctor.regularization_rule(*rows, uses=[1] * 20, unused=280),
        *doctor.regularization_rule(rows[1], rows[0], uses=[15] * 20, unused=0),
    ]
    english = make()
    set_language("zh")
    chinese = make()
    assert say("a", "b") == "b"
    for one, other in zip(english, chinese, strict=True):
        assert one.level == other.level
        numbers = [sorted(re.findall(r"\d+", text.line.replace(",", ""))) for text in (one, other)]
        assert numbers[0] == numbers[1], (one, other)
