"""tools/make_reg_images.py: the right images are drawn, once, and training takes them without a word."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from library import families
from library.contracts import Fit
from library.data import buckets, regularization, samples
from library.diffusion import sampling
from library.hardware.device import Device
from library.images import generation_parameters
from library.messages import Stopped, UserError, set_language
from library.options.checks import ConfigError, check_tool
from library.options.declaration import PROJECT
from library.options.tools import TOOLS
from library.tooling import generate
from tests.conftest import draw_set
from tools import make_reg_images

pytestmark = pytest.mark.slow("draws with a tiny model")

CPU = Device(torch.device("cpu"), torch.float32, "CPU")


@pytest.fixture
def train(tmp_path):
    """Two concepts, four images in two buckets, captions in several spellings."""
    captions = ["mytag, red hair, smile", "My_Tag, blue hair", "a photo of MYTAG outside"]
    draw_set(tmp_path / "train" / "4_mytag", captions, [(64, 64), (48, 80), (200, 200)])
    draw_set(tmp_path / "train" / "2_other one", ["other_one"], [(64, 64)], seed=1)
    (tmp_path / "train" / "4_mytag" / "1.txt").write_text("mytag, blue hair", encoding="utf-8")
    return tmp_path / "train"


@pytest.fixture
def make(tiny_model, tmp_path, train):
    """make(option=value, ...) -> the folder of images, by a random model of kilobytes in two steps."""

    def make(output: str = "reg", **options) -> Path:
        values = dict(
            pretrained_model_name_or_path=str(tiny_model("sd1")),
            train_data_dir=str(train),
            output_dir=str(tmp_path / output),
            class_words="a person",
            resolution=64,
            steps=2,
            device="cpu",
        )
        assert make_reg_images.run(check_tool(TOOLS["make_reg_images.py"], values | options, {})) == 0
        return tmp_path / output

    return make


def drawn(folder: Path) -> dict[str, bytes]:
    """{name below the folder: bytes} of all images."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


# ---- captions ----


@pytest.mark.parametrize(
    ("caption", "words", "left"),
    [
        ("mytag, red hair, smile", ["mytag"], "red hair, smile"),
        ("red hair,MyTag ,smile", ["mytag"], "red hair, smile"),
        ("my_tag, red_hair", ["my tag"], "red_hair"),
        ("my tag, hat", ["my_tag"], "hat"),
        ("a photo of mytag sitting", ["mytag"], "a photo of sitting"),
        ("mytagged, mytag2, hat", ["mytag"], "mytagged, mytag2, hat"),
        (r"fox \(series\), hat", ["fox (series)"], "hat"),
        ("fox_(series), hat", ["fox (series)"], "hat"),
        ("穿着我的裙子的女孩, 帽子", ["我的裙子"], "穿着 的女孩, 帽子"),
        ("我的裙子, 我的_裙子, 帽子", ["我的 裙子"], "帽子"),
        ("mytag", ["mytag"], ""),
        ("my tag, tag, my", ["tag", "my tag"], "my"),
        ("  mytag,  hat \nsecond line", ["mytag"], "hat"),
        ("Hat,smile , (word:1.2)", ["mytag", "", " "], "Hat,smile , (word:1.2)"),
        ("(mytag:1.3), (my hat, mytag cap:1.2)", ["mytag"], "(my hat:1.2), (cap:1.2)"),
        ("a+b, hat", ["a+b"], "hat"),
        ("", ["mytag"], ""),
    ],
)
def test_only_the_words_go_from_a_caption(caption, words, left):
    """Whatever their spelling; a caption without them stays as it is to the letter."""
    assert regularization.without(caption, words) == left


def test_captions_lose_every_concepts_word_and_empty_ones_become_the_class(make):
    folder = make()
    texts = {path.stem: path.read_text(encoding="utf-8") for path in folder.rglob("*.txt")}
    assert texts == {
        "mytag 0": "red hair, smile",
        "mytag 1": "blue hair",
        "mytag 2": "a photo of outside",
        "other one 0": "a person",
    }


def test_class_words_alone_can_be_drawn(make):
    folder = make(prompts="class words", class_words="a cat")
    assert {path.read_text(encoding="utf-8") for path in folder.rglob("*.txt")} == {"a cat"}
    assert len(drawn(folder)) == 4


def test_the_text_encoder_sees_the_caption_as_training_does(make, train, monkeypatch):
    """A web UI's escapes and weights are plain letters, here as there."""
    written = r"mytag, fox \(series\), (hat:1.3), [cap]"
    for path in (train / "4_mytag").glob("*.txt"):
        path.write_text(written, encoding="utf-8")
    seen = []
    encode = families.sd.clip_text.tokenize

    def tokenize(tokenizer, captions, *rest):
        seen.extend(captions)
        return encode(tokenizer, captions, *rest)

    monkeypatch.setattr(families.sd.clip_text, "tokenize", tokenize)
    make()
    assert set(seen) == {r"fox \(series\), (hat:1.3), [cap]", "a person", ""}


# ---- names, seeds, sizes, the rule ----


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("1girl", "5_1girl"),
        ("a photo of: a/b?", "5_a photo of a b"),
        (" 女孩. ", "5_女孩"),
        ("x" * 500, "5_" + "x" * 180 + " " + "b3d49c19"),
    ],
)
def test_a_folders_name_is_one_on_every_system(text, name):
    made = regularization.folder_name(5, text)
    assert made[:150] == name[:150]
    assert len(made.encode()) < 200
    assert not set(made) & set('<>:"/\\|?*')


def test_an_images_name_says_its_concept_and_fits_every_system():
    stem = regularization.file_stem
    assert stem("mytag", Path("photo 1.jpg"), 1) == "mytag photo 1"
    assert stem("my tag", Path("my_tag_01.jpg"), 3) == "my_tag_01-3"
    assert stem("", Path("照片.png"), 2) == "照片-2"
    long = stem("mytag", Path("长" * 80 + ".png"), 12)
    assert len(long.encode()) < 200
    assert long != stem("mytag", Path("长" * 81 + ".png"), 12)


def test_two_images_of_one_name_get_two_files(make, train):
    shutil.copy(train / "4_mytag" / "0.png", train / "4_mytag" / "0.webp")
    assert {name for name in drawn(make()) if "mytag 0" in name} == {
        "4_a person/mytag 0.png",
        "4_a person/mytag 0 (2).png",
    }


def test_a_new_training_image_changes_no_other(make, train):
    before = drawn(make())
    draw_set(train / "3_a new one", ["hat"], [(64, 64)])
    shutil.copy(train / "4_mytag" / "0.png", train / "4_mytag" / "a first one.png")
    after = drawn(make("other"))
    assert len(after) == len(before) + 2
    assert {name: after[name] for name in before} == before


def test_seeds_differ_by_image_index_and_seed():
    seeds = [
        regularization.seed_of(seed, concept, name, index)
        for seed in (1, 2)
        for concept in ("a", "b")
        for name in ("1.png", "2.png")
        for index in (1, 2)
    ]
    assert len(set(seeds)) == 16
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize(("resolution", "step"), [(64, 16), (512, 64), (768, 64), (1024, 32), (1024, 128)])
def test_an_image_of_a_buckets_size_falls_into_that_bucket_uncut(resolution, step):
    rng = random.Random(resolution)
    rule = buckets.BucketRule(resolution, resolution, resolution // 2, resolution * 2, step)
    for _ in range(200):
        bucket = buckets.fit((rng.randint(50, 5000), rng.randint(50, 5000)), rule).bucket
        assert buckets.fit(bucket, rule) == Fit(bucket, bucket, (0, 0))


def test_fewer_buckets_are_used_where_each_costs_minutes():
    sizes = [(500 + 37 * n, 900 - 11 * n) for n in range(30)]
    rule = buckets.BucketRule(512, 512, 256, 1024, 64)
    count = len({buckets.fit(size, rule).bucket for size in sizes})
    assert count > 4
    coarser = buckets.fewer_buckets(sizes, rule, 4)
    assert len({buckets.fit(size, coarser).bucket for size in sizes}) <= 4
    assert coarser.step == 128
    assert buckets.fewer_buckets(sizes, rule, count) == rule


@pytest.mark.parametrize(("per_caption", "repeats", "holds"), [(1, 4, True), (2, 2, True), (3, 1, True), (5, 1, False)])
def test_the_rule_is_kept_wherever_it_can_be(train, per_caption, repeats, holds):
    found = samples.find_samples(train)
    fits = {sample.image_path: buckets.fit((64, 64), buckets.BucketRule(64, 64, 32, 128, 16)) for sample in found.train}
    images, shares = regularization.wanted(
        found, fits, Path("reg"), class_words="1girl", images_per_caption=per_caption
    )
    share = next(share for share in shares if share.folder.name == "4_mytag")
    assert (share.reg_repeats, share.reg_images, share.holds) == (repeats, 3 * per_caption, holds)
    assert share.train_samples == 12
    assert len({image.path for image in images}) == len(images) == 4 * per_caption
    assert len({image.seed for image in images}) == len(images)


def test_the_rule_is_told_with_its_numbers(make, capsys):
    make(images_per_caption=3)
    lines = capsys.readouterr().out.splitlines()
    assert "4_mytag: 3 images x 4 repeats = 12 >= 9 = 9 images x 1 repeat in 1_a person: balanced" in lines
    assert (
        "2_other one: 1 image x 2 repeats = 2 < 3 = 3 images x 1 repeat in 1_a person: more than the training "
        "samples: lower images_per_caption to 2, or raise the training repeats" in lines
    )
    assert (
        "total: 14 training samples, 12 of regularization; an epoch uses 12 of 12 regularization images, 1~2 times "
        "each, 14 samples" in lines
    )


# ---- drawing, stopping, going on ----


def test_images_have_their_buckets_size_and_training_takes_them_without_a_word(make, train, run, capsys):
    folder = make()
    sizes = {path.stem: Image.open(path).size for path in folder.rglob("*.png")}
    assert sizes == {"mytag 0": (64, 64), "mytag 1": (48, 80), "mytag 2": (64, 64), "other one 0": (64, 64)}
    capsys.readouterr()
    run(train_data_dir=str(train), reg_data_dir=str(folder), max_train_epochs=1)
    said = capsys.readouterr().out
    assert "regularization: 4 of 4 images per epoch, 2~4 times each, 14 samples; captions are read from" in said
    assert [line for line in said.splitlines() if line.startswith("note:") and str(folder) in line] == []
    assert " 48x80       2        8" in said


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (dict(bucket_no_upscale=True, resolution=96), {(64, 64), (48, 80), (96, 96)}),
        (dict(bucket_reso_steps=32, max_bucket_reso=96), {(64, 64), (32, 96)}),
        (dict(min_bucket_reso=64), {(64, 64)}),
        (dict(enable_bucket=False), {(64, 64)}),
    ],
)
def test_sizes_are_those_of_a_training_with_the_same_options(make, options, sizes):
    """Of images of 64 x 64, 48 x 80 and 200 x 200; test_options.py sees the same of a training."""
    assert {Image.open(path).size for path in make(**options).rglob("*.png")} == sizes


def test_the_second_run_has_nothing_to_do(make, monkeypatch, capsys):
    before = drawn(make())
    monkeypatch.setattr(generate, "open_for_generation", None)
    assert drawn(make()) == before
    assert "nothing left to generate" in capsys.readouterr().out


def test_a_stopped_run_goes_on_with_what_is_missing(make, tmp_path, monkeypatch, capsys):
    whole = drawn(make("whole"))
    draw, count = sampling.generate, []

    def stopping(*arguments):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(sampling, "generate", stopping)
    with pytest.raises(Stopped):
        make()
    assert "stopped: 2 of 4 images done. Run it again to continue" in capsys.readouterr().out
    assert len(drawn(tmp_path / "reg")) == 2
    assert not list((tmp_path / "reg").rglob("*.tmp"))
    assert drawn(make()) == whole
    assert len(count) == 3 + 2


def test_a_lost_caption_is_written_again_and_one_edited_by_hand_stays(make):
    folder = make() / "4_a person"
    (folder / "mytag 0.txt").unlink()
    (folder / "mytag 1.txt").write_text("by hand", encoding="utf-8")
    make()
    assert (folder / "mytag 0.txt").read_text(encoding="utf-8") == "red hair, smile"
    assert (folder / "mytag 1.txt").read_text(encoding="utf-8") == "by hand"


def test_other_settings_are_never_mixed_in(make, train, monkeypatch):
    folder = make()
    before = drawn(folder)
    monkeypatch.setattr(generate, "open_for_generation", None)
    with pytest.raises(UserError) as caught:
        make(steps=3, negative_prompt="bad")
    assert "contains 4 images made with other settings: " in str(caught.value)
    assert "negative_prompt was '' and is 'bad' now; steps was 2 and is 3 now" in str(caught.value)
    assert "Set overwrite = True to generate them again, or choose another output_dir" in str(caught.value)
    (train / "4_mytag" / "0.txt").write_text("mytag, green hair", encoding="utf-8")
    with pytest.raises(UserError, match="contains 1 image.* prompt was 'red hair, smile' and is 'green hair' now"):
        make()
    with pytest.raises(UserError, match="contains 2 image.* Images: other one 0.png, mytag 0.png"):
        make(class_words="a cat")  # whose folder has another name
    assert drawn(folder) == before


def test_overwrite_draws_anew_what_changed_and_only_that(make, train):
    folder = make()
    before = drawn(folder)
    (train / "4_mytag" / "0.txt").write_text("mytag, green hair", encoding="utf-8")
    make(overwrite=True)
    after = drawn(folder)
    assert {name for name in before if before[name] != after[name]} == {"4_a person/mytag 0.png"}
    assert (folder / "4_a person" / "mytag 0.txt").read_text(encoding="utf-8") == "green hair"


def test_images_move_with_their_folders_name(make, train, monkeypatch):
    """Another number of repeats, or another class: nothing is drawn anew that need not be."""
    before = drawn(make())
    (train / "4_mytag").rename(train / "6_mytag")
    with monkeypatch.context() as patch:
        patch.setattr(generate, "open_for_generation", None)
        after = drawn(make())
    assert sorted(after) == [
        "2_a person/other one 0.png",
        "6_a person/mytag 0.png",
        "6_a person/mytag 1.png",
        "6_a person/mytag 2.png",
    ]
    assert sorted(after.values()) == sorted(before.values())
    after = drawn(make(class_words="a cat", overwrite=True))  # the one that was drawn from the class words is new
    assert sorted(after) == [
        "2_a cat/other one 0.png",
        "6_a cat/mytag 0.png",
        "6_a cat/mytag 1.png",
        "6_a cat/mytag 2.png",
    ]
    assert len(set(after.values()) & set(before.values())) == 3


def test_what_is_not_ours_is_never_overwritten(make, tmp_path, capsys):
    folder = tmp_path / "reg" / "4_a person"
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(folder / "mytag 0.png")
    with pytest.raises(UserError, match="1 file with names needed for the results, .* Move them away"):
        make(overwrite=True)
    (folder / "mytag 0.png").rename(folder / "my own.png")
    make()
    assert "contains 1 more image without a training image: my own.png" in capsys.readouterr().out


def test_an_image_that_is_not_whole_is_no_finished_one(make):
    folder = make()
    path = folder / "4_a person" / "mytag 0.png"
    assert generation_parameters.read_parameters(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert generation_parameters.read_parameters(path) is None
    with pytest.raises(UserError, match="not made by this tool or incomplete"):
        make()


def test_the_summary_shows_pairs_and_the_next_step(make):
    page = (make() / "summary.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 4
    assert "reg_data_dir = " in page
    assert "a photo of outside" in page
    assert "balanced" in page


def test_the_parameters_are_read_back_and_is_the_web_uis_text(make):
    path = make(negative_prompt="bad (hands)") / "4_a person" / "mytag 0.png"
    parameters = generation_parameters.read_parameters(path)
    assert (parameters["prompt"], parameters["steps"], parameters["width"]) == ("red hair, smile", 2, 64)
    prompt, negative, facts = Image.open(path).info["parameters"].split("\n")
    assert (prompt, negative) == ("red hair, smile", r"Negative prompt: bad \(hands\)")
    assert facts.startswith(
        f"Steps: 2, Sampler: Euler a, CFG scale: 7, Seed: {parameters['seed']}, Size: 64x64, Model hash: "
    )
    assert "Model: tiny, Clip skip: 1" in facts


def test_messages_are_chinese_too(make, capsys):
    set_language("zh")
    make()
    said = capsys.readouterr().out
    assert "4_mytag：3 张 x 重复 4 = 12 >= 12 = 4_a person 的 3 张 x 重复 4：数量合适" in said
    assert "reg_data_dir = " in said


# ---- what the user may have got wrong ----


def test_wrong_folders_are_told_together_with_a_wrong_model(make, train, tmp_path):
    model = tmp_path / "vae.safetensors"
    model.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(UserError) as caught:
        make(train_data_dir=str(train / "4_mytag"), pretrained_model_name_or_path=str(model))
    assert "one level too deep" in str(caught.value)
    assert "vae.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(class_words=" "), 'class_words = " " is empty: describe your subject'),
        (dict(output_dir="{train}"), "is the training folder itself"),
        (dict(output_dir="{train}/5_reg"), 'is in "5_reg" of the training folder'),
        (dict(output_dir="{train}/4_mytag/reg"), 'is in "4_mytag" of the training folder'),
    ],
)
def test_contradictions_are_told(make, train, options, told):
    with pytest.raises(ConfigError) as caught:
        make(**{name: value.format(train=train) for name, value in options.items()})
    assert told in str(caught.value)


def test_a_folder_within_the_training_folder_can_hold_them(make, train, run, capsys):
    """As in the guide that many follow: 10_concept and reg side by side."""
    make(output_dir=str(train / "reg"))
    make(output_dir=str(train / "reg"))
    said = capsys.readouterr().out
    assert "skipped" not in said
    run(train_data_dir=str(train), reg_data_dir=str(train / "reg"), max_train_epochs=1)


def test_a_trigger_that_stands_in_no_caption_is_told_with_what_may_be_meant(make, train, capsys):
    (train / "4_mytag").rename(train / "4_mytag girl")
    make()
    said = capsys.readouterr().out
    assert '"mytag girl" is in none of its captions, so nothing is removed from them' in said
    assert 'set remove_words = ["mytag"]' in said
    make("other", remove_words=["mytag", "nowhere"], class_words="mytag girl")
    said = capsys.readouterr().out
    assert "is in none of its captions" not in said
    assert "remove_words: in no caption: nowhere" in said
    assert 'class_words = "mytag girl" contains the trigger word "mytag girl"' in said


def test_a_broken_image_is_named_and_left_out(make, train, capsys):
    (train / "4_mytag" / "坏的.png").write_bytes(b"no picture")
    assert len(drawn(make())) == 4
    assert "坏的.png: skipped" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_told(make, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="output_dir = .*reg cannot be made"):
        make("file/reg")


def test_a_file_that_cannot_be_written_is_told_and_what_is_drawn_stays(make, tmp_path, monkeypatch):
    write, count = generation_parameters.write_image, []

    def failing(path, *rest):
        count.append(path)
        if len(count) == 2:
            raise PermissionError(13, "Permission denied")
        write(path, *rest)

    monkeypatch.setattr(generation_parameters, "write_image", failing)
    with pytest.raises(
        UserError, match="cannot be written .Permission denied.. Change its permissions, or choose another output_dir"
    ):
        make()
    assert len(drawn(tmp_path / "reg")) == 1
    assert len(drawn(make())) == 4


# ---- a model opened for drawing ----


def test_drawing_is_what_diffusers_own_forward_draws(tiny_model):
    for name in ("sd1", "sd2", "sdxl"):
        path = tiny_model(name)
        prompt = sampling.Prompt("hat", width=64, height=48, seed=3, step_count=2, sampler="euler_a")
        ours = sampling.generate(generate.open_for_generation(path, CPU), prompt)
        theirs = sampling.generate(families.open_model(path, dtype=torch.float32), prompt)
        assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1, name


def test_a_caption_gets_the_chunks_it_needs_whatever_was_drawn_before(tiny_model):
    family = generate.open_for_generation(tiny_model("sd1"), CPU)
    captions = ["hat " * count for count in (3, 40, 400, 3)]
    tokens = [count for count, _ in family.token_counts(captions)]
    assert 75 < tokens[1] <= 150 < 225 < tokens[2]
    assert [family.encode_captions([text])["states"].shape[1] for text in captions] == [77, 152, 227, 77]


def test_a_vae_that_overflows_goes_on_in_float32(tiny_model, monkeypatch, capsys):
    family = generate.open_for_generation(tiny_model("sd1"), CPU)
    family.vae.to(torch.float16)
    decode = family.family.decode_latents

    def overflowing(latents):
        pixels = decode(latents)
        return pixels if family.vae.dtype == torch.float32 else pixels * float("nan")

    monkeypatch.setattr(family.family, "decode_latents", overflowing)
    assert family.decode_latents(torch.zeros(1, 4, 4, 4)).isfinite().all()
    assert "goes on in float32" in capsys.readouterr().out


@pytest.mark.parametrize(("latents", "told"), [(float("nan"), "the denoiser gives NaN"), (0.0, "the VAE gives NaN")])
def test_a_black_image_is_an_error_with_its_cure(tiny_model, monkeypatch, latents, told):
    family = generate.open_for_generation(tiny_model("sd1"), CPU)
    monkeypatch.setattr(family.family, "decode_latents", lambda latents: torch.full((1, 3, 32, 32), float("nan")))
    with pytest.raises(UserError, match=told):
        family.decode_latents(torch.full((1, 4, 4, 4), latents))


def test_the_unet_makes_room_for_the_vae_where_memory_is_short(tiny_model, monkeypatch, capsys):
    family = generate.open_for_generation(tiny_model("sd1"), CPU)
    decode, moves, failures = family.family.decode_latents, [], []
    monkeypatch.setattr(family.unet, "to", lambda device: moves.append(str(device)))

    def short(latents):
        if not failures:
            failures.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(latents)

    monkeypatch.setattr(family.family, "decode_latents", short)
    first = family.decode_latents(torch.zeros(1, 4, 4, 4))
    assert torch.equal(first, family.decode_latents(torch.zeros(1, 4, 4, 4)))
    assert moves == ["cpu", "cpu", "cpu", "cpu"]
    assert capsys.readouterr().out.count("is moved out") == 1


def test_full_memory_is_told_with_what_to_do():
    told = 'full .CUDA out of memory.*mixed_precision.*device = "cpu"'
    with pytest.raises(UserError, match=told), generate.memory_errors_explained():
        raise torch.OutOfMemoryError("CUDA out of memory\nmore")


def test_a_models_hash_is_that_of_its_file(tmp_path, tiny_model):
    file = tmp_path / "anime v3.safetensors"
    file.write_bytes(b"abc")
    assert generate.identity(file) == ("anime v3", "ba7816bf8f")
    assert generate.identity(tiny_model("sd1"))[0] == "tiny"
    assert generate.identity(tiny_model("sd1")) != ("tiny", generate.identity(tiny_model("sd1"), "vae")[1])


def test_the_miniature_draws_what_the_captions_say(tmp_path):
    """Without the word the background stays as the caption has it."""
    words = {"blue": (160, 200, 245), "green": (170, 230, 175), "black": (25, 25, 25), "pink": (255, 205, 220)}
    draw_set(
        tmp_path / "train" / "5_mytag",
        [f"mytag, standing, center, {word} background" for word in words],
        [(64, 64)] * 4,
    )
    values = dict(train_data_dir=str(tmp_path / "train"), output_dir=str(tmp_path / "reg"), steps=12, device="cpu")
    values["pretrained_model_name_or_path"] = str(PROJECT / "library" / "miniature" / "model")
    assert make_reg_images.run(check_tool(TOOLS["make_reg_images.py"], values, {})) == 0
    for index, word in enumerate(words):
        image = np.asarray(Image.open(tmp_path / "reg" / "5_1girl" / f"mytag {index}.png"), float)
        border = np.concatenate([image[:6].reshape(-1, 3), image[-6:].reshape(-1, 3)]).mean(0)
        distances = {other: np.abs(border - np.array(rgb)).sum() for other, rgb in words.items()}
        assert min(distances, key=distances.get) == word, (word, border)
