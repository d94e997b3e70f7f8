"""Data sets from a file: what it says, what goes before what, what is wrong with it, and runs with them."""

import json
import random
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from library.contracts import Fit, Sample
from library.data import dataset_config, decoding, image_metadata, plan, samples
from library.data.buckets import BucketRule, Face, crop_around, face_in_name, resolve_resolution
from library.data.cache import LatentCache
from library.data.dataset import Dataset, captions_wanted, latents_wanted
from library.data.folders import Folder
from library.messages import UserError
from library.options import checks
from library.options.training import Config
from library.training.prepare import find_set
from tests.conftest import draw_set, events


@pytest.fixture
def images(tmp_path):
    """Three folders of images: one/, two/ and reg/."""
    draw_set(tmp_path / "one", ["mytag, red, smile", "mytag, blue"], [(64, 64), (48, 80)])
    draw_set(tmp_path / "two", ["cat, grey", "cat, black"], [(64, 64), (96, 96)], seed=1)
    draw_set(tmp_path / "reg", ["person, hat"], [(64, 64)], seed=2)
    return tmp_path


def described(folder: Path, text: str, **options) -> dataset_config.Described:
    """What a file means; {name} in it stands for a path below the folder."""
    ending = "json" if text.lstrip().startswith("{") else "toml"
    file = folder / f"sets.{ending}"
    file.write_text(re.sub(r"<(\w+)>", lambda name: (folder / name[1]).as_posix(), text), encoding="utf-8")
    return dataset_config.read_dataset_config(Config(dataset_config=str(file), **options))


TWO_SETS = """
[general]
shuffle_caption = true
caption_extension = '.txt'
keep_tokens = 1

# This is a DreamBooth-style dataset
[[datasets]]
resolution = 64
batch_size = 4
keep_tokens = 2

  [[datasets.subsets]]
  image_dir = '<one>'
  class_tokens = 'hoge girl'
  # This subset uses keep_tokens = 2 (the value of the parent datasets)

  [[datasets.subsets]]
  image_dir = '<two>'
  class_tokens = 'fuga boy'
  keep_tokens = 3

  [[datasets.subsets]]
  is_reg = true
  image_dir = '<reg>'
  class_tokens = 'human'
  keep_tokens = 1

[[datasets]]
resolution = [96, 64]
batch_size = 2

  [[datasets.subsets]]
  image_dir = '<one>'
  num_repeats = 5
"""


def test_what_stands_nearest_to_the_images_goes_first(images):
    """The example of sd-scripts' own documentation, with our folders; and what it leaves open is the run's."""
    found = described(images, TWO_SETS, keep_tokens=9, flip_aug=True, dataset_repeats=3, train_batch_size=7)
    assert [(subset.path.name, subset.dataset, subset.options.keep_tokens) for subset in found.subsets] == [
        ("one", 0, 2),
        ("two", 0, 3),
        ("reg", 0, 1),
        ("one", 1, 1),
    ]
    assert [subset.repeats for subset in found.subsets] == [3, 3, 3, 5]
    assert [subset.is_regularization for subset in found.subsets] == [False, False, True, False]
    assert [subset.text for subset in found.subsets] == ["hoge girl", "fuga boy", "human", ""]
    assert {subset.options.shuffle_caption for subset in found.subsets} == {True}  # of [general]
    assert {subset.options.flip_aug for subset in found.subsets} == {True}  # of the run
    assert {subset.options.caption_dropout_rate for subset in found.subsets} == {0.0}  # nobody's
    assert found.overrides == [
        {"resolution": 64, "train_batch_size": 4},
        {"resolution": "96,64", "train_batch_size": 2},
    ]
    assert found.notes == []


def test_json_says_the_same_as_toml(images):
    import tomllib

    toml = described(images, TWO_SETS)
    table = tomllib.loads(TWO_SETS)
    table["general"]["caption_prefix"] = None  # which sd-scripts takes as not given
    assert described(images, json.dumps(table))[1:] == toml[1:]
    again = described(images, json.dumps(table)).subsets
    config = {"dataset_config": None}
    assert [replace(one, options=replace(one.options, **config)) for one in again] == [
        replace(one, options=replace(one.options, **config)) for one in toml.subsets
    ]


PROBLEMS = {
    "unknown key": (
        "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '<one>'\nkeep_token = 1\n",
        "sets.toml:5: keep_token: there is no such option. Did you mean keep_tokens?",
    ),
    "our name of a key that is called otherwise here": (
        "[[datasets]]\ntrain_batch_size = 2\n[[datasets.subsets]]\nimage_dir = '<one>'\n",
        "sets.toml:2: train_batch_size: there is no such option. Did you mean batch_size?",
    ),
    "size of a subset": (
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = '<one>'\nresolution = 64\n",
        "sets.toml:4: resolution: it belongs to [[datasets]] or [general]: the subsets of a data set share their "
        "buckets",
    ),
    "folder of a data set": (
        "[[datasets]]\nimage_dir = '<one>'\n[[datasets.subsets]]\nimage_dir = '<one>'\n",
        "sets.toml:2: image_dir: it belongs to [[datasets.subsets]]",
    ),
    "applies to the whole run": (
        "[general]\nlearning_rate = 1e-4\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = '<one>'\n",
        "sets.toml:2: learning_rate: it applies to the whole run; set it outside of this file",
    ),
    "wrong type, of the second of two": (
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = '<one>'\nkeep_tokens = 1\nshuffle_caption = true\n"
        "[[datasets.subsets]]\nimage_dir = '<two>'\nkeep_tokens = 'many'\n",
        'sets.toml:8: keep_tokens = "many" is not a number',
    ),
    "limit": (
        "[[datasets]]\nbatch_size = 0\n[[datasets.subsets]]\nimage_dir = '<one>'\n",
        "sets.toml:2: train_batch_size = 0 is below 1, the least possible",
    ),
    "range": (
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = '<one>'\nface_crop_aug_range = [3.0, 1.0]\n",
        'sets.toml:4: face_crop_aug_range = [3.0, 1.0] is not a range such as "2.0,4.0"',
    ),
    "no folder": (
        "[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2\n",
        "sets.toml: data set 1, subset 1: image_dir is missing: the folder with its images",
    ),
    "no subsets": (
        "[[datasets]]\nresolution = 64\n",
        "sets.toml: subsets is missing, or not written as tables headed [[datasets.subsets]]",
    ),
    "no data sets": (
        "[general]\nkeep_tokens = 1\n",
        "sets.toml: datasets is missing, or not written as tables headed [[datasets]]",
    ),
    "one table only": (
        "[datasets]\nresolution = 64\n",
        "sets.toml: datasets is missing, or not written as tables headed [[datasets]]",
    ),
    "other table": (
        "[dataset]\nresolution = 64\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = '<one>'\n",
        "dataset: only [general], [[datasets]] is allowed here",
    ),
    "refused": (
        "[[datasets]]\nnetwork_multiplier = 0.5\n[[datasets.subsets]]\nimage_dir = '<one>'\n",
        "sets.toml:2: network_multiplier is not supported: a LoRA is trained at its full strength",
    ),
    "contradiction": (
        "[[datasets]]\nresolution = 64\nmin_bucket_reso = 128\n[[datasets.subsets]]\nimage_dir = '<one>'\n",
        "sets.toml:3: min_bucket_reso = 128 is more than the resolution 64. Lower it, or set it to None",
    ),
    "contradiction with the run": (
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = '<one>'\nshuffle_caption = true\n",
        "sets.toml:4: cache_text_encoder_outputs = True is not possible with shuffle_caption, which changes the "
        "captions. Turn one of them off",
    ),
    "all left out": (
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = '<one>'\nnum_repeats = 0\n",
        "sets.toml: all subsets are left out",
    ),
    "lines of JSON": (
        '{"datasets": [\n{"subsets": [\n{"image_dir": "<one>"},\n{"image_dir": "<two>",\n"keep_token": 1}]}]}',
        "sets.json:5: keep_token: there is no such option. Did you mean keep_tokens?",
    ),
    "no TOML": ("[[datasets]\n", "sets.toml:1: not valid TOML at column 11"),
}


@pytest.mark.parametrize(("text", "problem"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_mistake_is_told_with_its_line(images, text, problem):
    options = dict(cache_text_encoder_outputs=True, text_encoder_lr=0.0) if "text_encoder" in problem else {}
    with pytest.raises(checks.ConfigError) as told:
        described(images, text, **options)
    assert [line for line in told.value.problems if problem in line], told.value.problems
    assert len(told.value.problems) == 1


def test_all_mistakes_are_told_at_once(images):
    text = "[general]\nx = 1\n[[datasets]]\nresolution = 'big'\n[[datasets.subsets]]\nimage_dir = '<nowhere>'\n"
    with pytest.raises(checks.ConfigError) as told:
        described(images, text)
    lines = told.value.problems
    assert [line.partition(" ")[0] for line in lines] == ["sets.toml:2:", "sets.toml:4:", "sets.toml:6:"]
    assert "image_dir" in lines[2]
    assert "nowhere" in lines[2]


def test_what_has_no_effect_is_said_once(images):
    text = """
[general]
keep_tokens = 2
cache_info = true
[[datasets]]
network_multiplier = 1.0
  [[datasets.subsets]]
  image_dir = '<one>'
  [[datasets.subsets]]
  image_dir = '<one>'
  [[datasets.subsets]]
  image_dir = '<two>'
  {more}
"""
    found = described(images, text.replace("{more}", ""))
    assert [subset.path.name for subset in found.subsets] == ["one", "two"]
    assert found.notes == [
        "sets.toml:4: cache_info has no effect: image information is always cached",
        f"data set 1, subset 2 ({images / 'one'}) is left out: an earlier one of the same data set is the same",
        "sets.toml:3: keep_tokens = 2 has no effect without shuffle_caption / caption_tag_dropout_rate / "
        "token_warmup_step",
    ]
    with_effect = described(images, text.replace("{more}", "shuffle_caption = true"))  # in one of the subsets
    assert not [note for note in with_effect.notes if "keep_tokens" in note]


def test_folders_given_beside_a_file_of_data_sets_are_said_to_have_no_effect(images):
    file = images / "sets.toml"
    file.write_text(f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{images / 'one'}'\n")
    given = dict(dataset_config=str(file), train_data_dir=str(images), reg_data_dir=str(images / "reg"))
    config, warnings = checks.check(given, {name: f"--{name}" for name in given})
    for name in ("train_data_dir", "reg_data_dir"):
        assert f'--{name} "{given[name]}" has no effect: dataset_config overrides it' in warnings
    found = find_set(config, None)
    assert {sample.image_path.parent.name for sample in found.train + found.regularization} == {"one"}


# ---- plans ----


def imagined(count: int, size: tuple[int, int], dataset: int = 0, *, repeats: int = 1, is_reg: bool = False, name="p"):
    return [
        Sample(Path(f"{name}{dataset}{is_reg}{at}"), "", *size, "x", repeats, is_reg, dataset=dataset)
        for at in range(count)
    ]


def planned(found: samples.Samples, model_resolution: int = 512, size_step: int = 64, **options) -> plan.Plan:
    config = Config(**{"max_train_epochs": 2, "reg_rotate": False} | options)
    rules = [resolve_resolution(own, model_resolution, size_step) for own in found.configs(config)]
    return plan.make_plan(found, config, *rules)


BALANCE = [  # training samples; regularization images and repeats: images used, samples: as sd-scripts balances
    (1000, 100, 5, 100, 1000),
    (100, 50, 3, 34, 102),
    (100, 300, 1, 100, 100),
    (10, 5, 4, 3, 12),
    (300, 100, 1, 100, 300),
    (1000, 7, 1, 7, 1000),
]


@pytest.mark.parametrize("first", BALANCE)
def test_regularization_images_are_balanced_within_each_data_set(first):
    second = BALANCE[(BALANCE.index(first) + 1) % len(BALANCE)]
    train, reg = [], []
    for dataset, (wanted, count, repeats, *_) in enumerate((first, second)):
        train += imagined(wanted, (512, 512), dataset)
        reg += imagined(count, (512, 512), dataset, repeats=repeats, is_reg=True)
    found = planned(samples.Samples(train, reg, [], overrides=[{}, {}]), train_batch_size=1)
    uses = [(sample, count) for sample, count in plan.uses_of_epoch(found, 1) if sample.is_regularization]
    for dataset, (*_, images_used, sample_count) in enumerate((first, second)):
        own = [count for sample, count in uses if sample.dataset == dataset]
        assert (len(own), sum(own)) == (images_used, sample_count)
    assert found.batch_counts == [len(plan.batches_of_epoch(found, 7, epoch)) for epoch in (1, 2)]


def test_each_data_set_has_buckets_and_batches_of_its_own():
    """The same images at 512 and at 1024, as sd-scripts' documentation does it; the buckets are sd-scripts'."""
    sizes = {(1000, 1500): ((384, 640), (832, 1216)), (1920, 1080): ((640, 384), (1344, 768))}
    train = [replace(one, dataset=at) for size in sizes for at in (0, 1) for one in imagined(5, size, name=str(size))]
    limits = dict(min_bucket_reso=256, max_bucket_reso=1024), dict(min_bucket_reso=256, max_bucket_reso=2048)
    overrides = [
        dict(resolution=512, train_batch_size=4, **limits[0]),
        dict(resolution=1024, train_batch_size=2, **limits[1]),
    ]
    found = planned(samples.Samples(train, [], [], overrides=overrides))
    for sample in train:
        assert found.fit(sample).bucket == sizes[sample.width, sample.height][sample.dataset]
    batches = plan.batches_of_epoch(found, 7, 1)
    assert all(len({sample.dataset for sample in batch}) == 1 for batch in batches)
    counts = Counter((batch[0].dataset, len(batch)) for batch in batches)
    assert counts == {(0, 4): 2, (0, 1): 2, (1, 2): 4, (1, 1): 2}
    assert found.batch_counts == [10, 10]
    assert [batch[0].dataset for batch in batches] != sorted(batch[0].dataset for batch in batches)  # shuffled together
    assert found.batch_size == 4
    assert batches == plan.batches_of_epoch(found, 7, 1) != plan.batches_of_epoch(found, 7, 2)


def test_the_table_of_the_plan_tells_the_sets_apart(images):
    found = described(images, TWO_SETS)
    read = samples.read_subsets(found.subsets, found.overrides)
    table = plan.plan_table(planned(read, 64, 16), Config(max_train_epochs=2))
    assert re.search(r"set 1: one +2 +1 +2 ", table)
    assert re.search(r"set 2: one +2 +5 +10 ", table)
    assert re.search(r"set 1: 64x64 +4 +7 +2\n", table)  # of 4; three are of the training
    assert re.search(r"set 2: \d+x\d+ +\d+ +5 +3\n", table)  # of 2
    assert "in batches of 4 or 2" in table


ALONE = """
[[datasets]]
[[datasets.subsets]]
image_dir = '<one>'
[[datasets]]
[[datasets.subsets]]
image_dir = '<reg>'
is_reg = true
"""


def test_regularization_in_a_set_of_its_own_is_told_and_left_out_as_by_sd_scripts(images):
    found = described(images, ALONE)
    read = samples.read_subsets(found.subsets, found.overrides)
    (line,) = read.warnings
    assert "data set 2: its regularization images are not used" in line
    assert "move their [[datasets.subsets]] into the [[datasets]] of those" in line
    assert line.level == "red"
    made = planned(read, 64, 16)
    assert made.batch_counts == [2, 2]  # of the two images, of two buckets
    assert "regularization: none" in plan.plan_table(made, Config(max_train_epochs=2))
    assert "never used" not in "\n".join(plan.check(made, Config(max_train_epochs=2)))


@pytest.mark.parametrize("broken", [False, True])
def test_regularization_beside_no_usable_training_image_is_told(images, broken):
    alone = ALONE[ALONE.index("[[datasets]]\n", 5) :] if not broken else ALONE
    for path in (images / "one").iterdir() if broken else ():
        path.write_bytes(b"no image")
    found = described(images, alone)
    with pytest.raises(UserError) as error:
        samples.read_subsets(found.subsets, found.overrides)
    expected = "there is no usable image in" if broken else "only regularization images (is_reg = true), so there is"
    assert expected in error.value.problems[0]


def test_a_set_whose_training_images_are_all_broken_uses_no_regularization(images):
    both = ALONE.replace(
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = '<reg>'", "[[datasets.subsets]]\nimage_dir = '<reg>'"
    )
    shutil.copytree(images / "one", images / "three")
    for path in (images / "one").iterdir():
        path.write_bytes(b"no image")
    found = described(images, both + "[[datasets]]\n[[datasets.subsets]]\nimage_dir = '<three>'\n")
    read = samples.read_subsets(found.subsets, found.overrides)
    assert read.regularization == []
    assert "regularization: none" in plan.plan_table(planned(read, 64, 16), Config(max_train_epochs=2))
    assert any("data set 1: its regularization images are not used" in line for line in read.warnings)


@pytest.mark.slow("a run of two epochs")
def test_a_run_with_regularization_in_a_set_of_its_own_trains_and_says_so(run, images, capsys):
    (images / "sets.toml").write_text(ALONE.replace("<one>", str(images / "one")).replace("<reg>", str(images / "reg")))
    run(dataset_config=str(images / "sets.toml"), max_train_epochs=1, resolution=64)
    assert "data set 2: its regularization images are not used" in capsys.readouterr().out


# ---- batches ----


def batches_of(read: samples.Samples, config: Config, *rules: BucketRule, seed: int = 7) -> list:
    made = plan.make_plan(read, config, *rules)
    latents = LatentCache(None, "vae")
    latents.fill(latents_wanted(made, config), lambda pixels: torch.nn.functional.avg_pool2d(pixels, 8))
    return list(Dataset(made, config, seed, latents=latents).batches(1))


def test_each_subset_is_treated_by_its_own_options(images):
    text = """
[[datasets]]
  [[datasets.subsets]]
  image_dir = '<one>'
  caption_prefix = "prefix,"
  flip_aug = true
  num_repeats = 20
  [[datasets.subsets]]
  image_dir = '<two>'
  caption_dropout_rate = 1
  [[datasets.subsets]]
  image_dir = '<reg>'
  is_reg = true
"""
    for folder in ("one", "two", "reg"):
        for path in (images / folder).glob("*.png"):
            image = Image.open(path)
            image.paste((255, 0, 0), (0, 0, 20, 20))  # not the same when it is mirrored
            image.save(path)
    found = described(images, text)
    read = samples.read_subsets(found.subsets, found.overrides)
    config = Config(max_train_epochs=1, train_batch_size=3, prior_loss_weight=0.5, max_data_loader_n_workers=0)
    rule = BucketRule(64, 64, 32, 128, 16)
    made = plan.make_plan(read, config, rule)
    flips = Counter(sample.image_path.parent.name for sample, _, flip in latents_wanted(made, config) if flip)
    assert flips == {"one": 2}
    assert captions_wanted(made, config) == [
        "", "cat, black", "cat, grey", "person, hat", "prefix, mytag, blue", "prefix, mytag, red, smile",
    ]  # fmt: skip
    seen: dict[str, set] = {}
    for batch in batches_of(read, config, rule):
        for sample, caption, weight, latents in zip(
            batch.samples, batch.captions, batch.weights, batch.latents, strict=True
        ):
            seen.setdefault(sample.image_path.parent.name, set()).add((caption, float(weight)))
            seen.setdefault(sample.image_path.as_posix(), set()).add(latents.numpy().tobytes())
    assert seen["one"] == {("prefix, mytag, blue", 1.0), ("prefix, mytag, red, smile", 1.0)}
    assert seen["two"] == {("", 1.0)}
    assert seen["reg"] == {("person, hat", 0.5)}
    variants = {Path(path).parent.name + Path(path).name: len(of) for path, of in seen.items() if path.endswith("png")}
    assert variants["two0.png"] == variants["two1.png"] == variants["reg0.png"] == 1
    assert variants["one0.png"] == variants["one1.png"] == 2  # as it is and mirrored


# ---- whole runs ----


def losses(folder: Path) -> list[float]:
    return [event["loss"] for event in events(folder)]


def test_folders_described_by_a_file_train_as_folders_do(run, small_set, tmp_path):
    train, reg = small_set
    file = tmp_path / "sets.toml"
    file.write_text(
        f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{train / '2_mytag'}'\nnum_repeats = 2\n"
        f"class_tokens = 'mytag'\n[[datasets.subsets]]\nimage_dir = '{reg / '1_person'}'\nis_reg = true\n"
    )
    described = run(output="described", dataset_config=str(file), shuffle_caption=True, max_train_steps=8)
    assert losses(described) == losses(run(output="folders", shuffle_caption=True, max_train_steps=8))


def test_a_run_of_two_data_sets_is_that_of_two_plans_made_by_hand(run, images, monkeypatch):
    """Each set planned alone from folders, its batches taken where the run of both has them: the same losses."""
    from library.data import dataset as module

    file = images / "sets.toml"
    text = TWO_SETS.replace("'<", "'" + images.as_posix() + "/").replace(">'", "'")
    file.write_text(re.sub(r"(?m)^ *(shuffle_caption|keep_tokens) = .*$", "", text))
    options = dict(dataset_config=str(file), max_train_epochs=2, enable_bucket=False)
    ours = run(output="a", **options)
    for name, folder in (("set1", "1_one"), ("set1", "1_two"), ("set1reg", "1_reg"), ("set2", "5_one")):
        (images / name).mkdir(exist_ok=True)
        (images / name / folder).symlink_to(images / folder.partition("_")[2])

    class ByHand:
        def __init__(self, planned, config, seed, *, latents, texts, scale, size_conditioning):
            own = [
                samples.find_samples(images / "set1", images / "set1reg"),
                samples.find_samples(images / "set2"),
            ]
            sizes = dict(resolution=64, train_batch_size=4), dict(resolution="96,64", train_batch_size=2)
            own = [replace(read, train=real(read.train), regularization=real(read.regularization)) for read in own]
            self.plans = []
            for read, size in zip(own, sizes, strict=True):
                of_set = replace(config, **size, min_bucket_reso=None, max_bucket_reso=None, bucket_reso_steps=None)
                rule = resolve_resolution(of_set, 64, 16)
                self.plans.append((plan.make_plan(read, of_set, rule), of_set))
            self.seed, self.planned = seed, planned
            self.inputs = dict(latents=latents, size_conditioning=size_conditioning)

        def batches(self, epoch, start=0, process=0, of=1):
            for wanted in plan.batches_of_epoch(self.planned, self.seed, epoch):
                made, of_set = self.plans[wanted[0].dataset]
                known = {one.image_path: one for one in made.samples.train + made.samples.regularization}
                samples_of_batch = [known[one.image_path.resolve()] for one in wanted]
                monkeypatch.setattr(module, "batches_of_epoch", lambda *_, one=samples_of_batch: [one])
                yield from module_dataset(made, of_set, self.seed, **self.inputs).batches(1)

    def real(found):
        """As the cache of latents knows the images: it has them under that very path and fit, or fails."""
        return [replace(one, image_path=one.image_path.resolve()) for one in found]

    module_dataset = module.Dataset
    monkeypatch.setattr(module, "Dataset", ByHand)
    by_hand = run(output="b", **options)
    assert len(losses(ours)) == 2 * (2 + 5)
    assert losses(ours) == losses(by_hand)


def test_the_file_tells_its_data_sets(run, images):
    from tests.conftest import Result

    (images / "sets.toml").write_text(TWO_SETS.replace("'<", f"'{images.as_posix()}/").replace(">'", "'"))
    out = run(dataset_config=str(images / "sets.toml"), max_train_epochs=1)
    told = Result(out, "").metadata
    first, second = json.loads(told["ss_datasets"])
    assert (first["batch_size_per_device"], first["resolution"]) == (4, [64, 64])
    assert (second["batch_size_per_device"], second["resolution"]) == (2, [96, 64])
    assert (first["num_train_images"], first["num_reg_images"], second["num_train_images"]) == (4, 1, 10)
    assert [one["keep_tokens"] for one in first["subsets"]] == [2, 3, 1]
    assert first["subsets"][2]["is_reg"]
    assert first["subsets"][2]["class_tokens"] == "human"
    assert sum(bucket["count"] for bucket in second["bucket_info"]["buckets"].values()) == 10
    assert json.loads(told["ss_dataset_dirs"]) == {
        "one": {"n_repeats": 1, "img_count": 2}, "two": {"n_repeats": 1, "img_count": 2},
        "one (2)": {"n_repeats": 5, "img_count": 2},
    }  # fmt: skip
    assert json.loads(told["ss_tag_frequency"])["one"] == {"mytag": 2, "red": 1, "smile": 1, "blue": 1}
    folder_keys = {"ss_resolution", "ss_bucket_info", "ss_reg_dataset_dirs", "ss_keep_tokens", "ss_enable_bucket"}
    assert not folder_keys & told.keys()


def test_debug_dataset_shows_the_first_batches_and_trains_nothing(run, images, capsys):
    out = run(debug_dataset=True, caption_prefix="<b>new,", max_train_epochs=1)
    page = (out / "it.dataset.html").read_text(encoding="utf-8")
    assert [path.name for path in out.iterdir()] == ["it.dataset.html"]
    assert page.count("<figure>") == 12
    assert page.count("data:image/webp") == 12
    assert "&lt;b&gt;new, mytag, blue hair" in page
    assert "2_mytag/1.png" in page
    assert "Nothing was trained" in capsys.readouterr().out


# ---- metadata files ----


@pytest.mark.parametrize(
    ("entry", "all_lines", "caption"),
    [
        ({"caption": "a cat", "tags": "cat, sofa"}, False, "a cat,cat, sofa"),
        ({"caption": "a cat"}, False, "a cat"),
        ({"tags": "cat, sofa"}, False, "cat, sofa"),
        ({}, False, ""),
        ({"caption": "a cat\n\nanother", "tags": "x\ny"}, True, "a cat,x,y\nanother,x,y"),
        ({"caption": "a cat\nanother", "tags": ""}, True, "a cat\nanother"),
        ({"tags": "x\ny"}, True, "x,y"),
    ],
)
def test_caption_and_tags_are_joined_as_sd_scripts_does(images, entry, all_lines, caption):
    file = images / "meta.json"
    file.write_text(json.dumps({"0": entry}), encoding="utf-8")
    folder = Folder(images / "one", 1, "", False, metadata_file=file)
    assert image_metadata.read_captions(folder, all_lines, []) == {images / "one" / "0.png": caption}


def test_images_of_a_metadata_file_are_found_by_path_name_or_stem(images):
    Image.new("RGB", (64, 64)).save(images / "one" / "v1.5.png")
    entries = {
        str(images / "two" / "0.png"): {"caption": "whole path"},
        "one/0.png": {"caption": "below"},
        "one/1": {"caption": "no ending", "train_resolution": [64, 64], "score": 3},
        "one/v1.5": {"caption": "a dot", "score": 1},
        "one/9.png": {"caption": "gone"},
    }
    (images / "meta.json").write_text(json.dumps(entries), encoding="utf-8")
    lines = [json.dumps({"image_path": key, **entry}) for key, entry in entries.items()]
    (images / "meta.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    for name in ("meta.json", "meta.jsonl"):
        warnings: list[str] = []
        folder = Folder(images, 1, "", False, metadata_file=images / name)
        found = image_metadata.read_captions(folder, False, warnings)
        assert {f"{path.parent.name}/{path.name}": text for path, text in found.items()} == {
            "two/0.png": "whole path", "one/0.png": "below", "one/1.png": "no ending", "one/v1.5.png": "a dot",
        }  # fmt: skip
        assert warnings == [
            f"{images / name}: 1 listed image does not exist: one/9.png",
            f"{images / name}: only caption and tags are read; not used: score (2)",
        ]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("meta.json", '{"0": {"caption": 1}}', "meta.json: 0: not of the form"),
        ("meta.json", '{"0": "a cat"}', "meta.json: 0: not of the form"),
        ("meta.json", '["0"]', "not of the form"),
        ("meta.json", '{\n"0": }', "meta.json:2: not valid JSON"),
        ("meta.jsonl", '{"image_path": "0"}\n{', "meta.jsonl:2: not valid JSON"),
        ("meta.jsonl", '{"caption": "x"}', "meta.jsonl:1: not of the form"),
        ("meta.json", '{"9": {}}', "none of its images is in"),
        ("meta.json", "{}", "lists no images"),
    ],
)
def test_a_wrong_metadata_file_is_told(images, name, text, problem):
    (images / name).write_text(text)
    folder = Folder(images / "one", 1, "", False, metadata_file=images / name)
    with pytest.raises(UserError, match=re.escape(problem)):
        image_metadata.read_captions(folder, False, [])


def test_captions_of_one_file_train_as_those_of_many(run, small_set, tmp_path):
    train, _ = small_set
    folder = train / "2_mytag"
    entries = {path.stem: {"caption": path.with_suffix(".txt").read_text()} for path in folder.glob("*.png")}
    (tmp_path / "meta.json").write_text(json.dumps(entries))
    ours = run(
        output="a",
        in_json=str(tmp_path / "meta.json"),
        train_data_dir=str(folder),
        dataset_repeats=2,
        reg_data_dir=None,
    )
    assert losses(ours) == losses(run(output="b", reg_data_dir=None))


# ---- masks, faces, kernels, sizes ----


def test_masks_may_lie_in_a_folder_of_their_own(tmp_path):
    draw_set(tmp_path / "set" / "1_a", ["a", "b", "c"], [(64, 64)] * 3)
    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    for below in ("masks", "masks/1_a"):
        (tmp_path / below).mkdir()
        half.save(tmp_path / below / "0.bmp")
        half.convert("RGB").save(tmp_path / below / "1.webp", lossless=True)
        found = samples.find_samples(tmp_path / "set", masks_dir=tmp_path / "masks")
        masks = [sample.mask for sample in found.train]
        assert [mask and mask.path for mask in masks] == [
            tmp_path / below / "0.bmp", tmp_path / below / "1.webp", None,
        ]  # fmt: skip
        assert [mask.share for mask in masks[:2]] == [0.5, 0.5]
    assert not [sample for sample in samples.find_samples(tmp_path / "set").train if sample.mask]


def test_faces_are_read_from_names():
    assert face_in_name(Path("a/b_c_100_80_40_60.png")) == Face(100, 80, 40, 60)
    for name in ("100_80_40_60.png", "b.png", "b_100_80_x_60.png", "b_100_80_0_0.png"):
        assert face_in_name(Path(name)) is None


def test_a_crop_around_a_face_is_that_of_sd_scripts():
    """Worked out by hand from its rule: scale side / (face x times), cut so that the face is in the middle."""
    face, fit = Face(600, 300, 100, 80), Fit((64, 64), (128, 64), (32, 0))
    got = crop_around(face, (1600, 800), fit, (2.0, 2.0), random.Random(0))
    assert got == Fit((64, 64), (512, 256), (192 - 32, 96 - 32))  # scale 64 / (2 x 100) = 0.32
    corner = crop_around(Face(10, 790, 100, 80), (1600, 800), fit, (2.0, 2.0), random.Random(0))
    assert corner.crop == (0, 256 - 64)
    huge = crop_around(Face(600, 300, 10, 10), (1600, 800), fit, (2.0, 2.0), random.Random(0))
    assert huge.resized == (1600, 800)  # never enlarged
    tiny = crop_around(Face(600, 300, 700, 700), (1600, 800), fit, (2.0, 2.0), random.Random(0))
    assert tiny.resized == (128, 64)  # never smaller than the bucket
    small = crop_around(Face(20, 20, 10, 10), (50, 40), fit, (2.0, 2.0), random.Random(0))
    assert small.resized == (80, 64)  # enlarged as far as the bucket needs


@pytest.mark.parametrize("anywhere", [False, True])
def test_crops_around_a_face_vary_within_their_range(anywhere):
    rng, face, fit = random.Random(3), Face(900, 400, 100, 90), Fit((96, 64), (128, 64), (16, 0))
    scales, centred = [], 0
    for _ in range(300):
        bucket, resized, (left, top), _ = crop_around(face, (1600, 800), fit, (1.0, 4.0), rng, anywhere=anywhere)
        scale = resized[0] / 1600
        scales.append(64 / (100 * scale))
        assert 0 <= left <= resized[0] - 96
        assert 0 <= top <= resized[1] - 64
        centred += abs(face.x * scale - left - 48) < 7 and abs(face.y * scale - top - 32) < 7
    assert 0.99 < min(scales) < 1.1
    assert 3.5 < max(scales) < 4.01
    assert (centred == 300) != anywhere


def test_a_face_crop_shows_the_face(tmp_path):
    """White where the face is: at 1.0 to 1.2 faces the crop is nearly all white."""
    image = Image.new("RGB", (400, 300))
    image.paste((255, 255, 255), (50, 150, 150, 250))
    (tmp_path / "1_a").mkdir()
    image.save(tmp_path / "1_a" / "x_100_200_100_100.png")
    config = Config(
        max_train_epochs=1, face_crop_aug_range="1,1.2", cache_latents=False, max_data_loader_n_workers=0,
        train_batch_size=1,
    )  # fmt: skip
    made = plan.make_plan(samples.find_samples(tmp_path), config, BucketRule(64, 64, 32, 128, 16))
    (batch,) = Dataset(made, config, 7).batches(1)
    assert batch.pixels.min() < -0.9 or batch.pixels.mean() > 0.2
    assert 0.3 < float((batch.pixels + 1).mean() / 2) <= 1


@pytest.mark.parametrize("kernel", sorted(decoding.KERNELS))
def test_images_are_resized_with_the_kernel_that_is_asked_for(tmp_path, kernel):
    values = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    fit = Fit((64, 64), (64, 64), (0, 0), kernel)
    ours = decoding.load(tmp_path / "a.png", fit).astype(float)
    names = {"linear": "bilinear", "cubic": "bicubic", "area": "box"}
    theirs = Image.fromarray(values).resize((64, 64), getattr(Image.Resampling, names.get(kernel, kernel).upper()))
    assert np.abs(ours - np.asarray(theirs)).max() <= 1
    if kernel in ("area", "box"):
        exact = values.reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert np.abs(ours - exact).max() <= 1  # rounded twice
    else:
        assert np.abs(ours - decoding.load(tmp_path / "a.png", fit._replace(kernel="area"))).max() > 2


def test_latents_of_another_kernel_are_others(tmp_path):
    draw_set(tmp_path / "1_a", ["a"], [(100, 100)])
    (sample,) = samples.find_samples(tmp_path).train
    fit = Fit((64, 64), (64, 64), (0, 0))
    cache = LatentCache(tmp_path / "cache", "vae")
    for kernel, made in ((None, 1), ("nearest", 1), ("nearest", 0), (None, 0)):
        wanted = [(sample, fit._replace(kernel=kernel), False)]
        assert cache.fill(wanted, lambda pixels: torch.nn.functional.avg_pool2d(pixels, 8)).made == made
    plain, nearest = (cache.get(sample, fit._replace(kernel=kernel)) for kernel in (None, "nearest"))
    assert not torch.equal(plain, nearest)


def test_images_with_no_more_pixels_are_left_out(tmp_path):
    draw_set(tmp_path / "1_a", ["a", "b", "c"], [(64, 64), (64, 65), (40, 90)])
    found = samples.find_samples(tmp_path, least=64 * 64)
    assert [sample.image_path.name for sample in found.train] == ["1.png"]
    assert [(folder.image_count, folder.caption_count) for folder in found.folders] == [(1, 1)]
    (line,) = found.warnings
    assert "2 images left out by skip_image_resolution: 0.png, 2.png" in line


def test_options_that_change_images_switch_the_cache_off(images, run, capsys):
    (images / "sets.toml").write_text(
        f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{images / 'one'}'\nrandom_crop = true\n"
    )
    run(dataset_config=str(images / "sets.toml"), max_train_steps=1)
    said = capsys.readouterr().out
    assert "cache_latents is off, because" in said
    assert "encoded" not in said


def test_ranges_and_sizes_are_checked():
    assert checks.check({"face_crop_aug_range": "1.5, 3"}, {})[0].face_crop_aug_range == "1.5,3"
    assert checks.check({"skip_image_resolution": "512,768"}, {})[0].skip_image_resolution == "512,768"
    for name, value in (
        ("face_crop_aug_range", "2"),
        ("face_crop_aug_range", "0,1"),
        ("skip_image_resolution", "auto"),
    ):
        with pytest.raises(checks.ConfigError, match="is not a (range|size)"):
            checks.check({name: value}, {})


def test_the_command_of_a_run_describes_the_same_data_sets(run, images, monkeypatch):
    """Sizes that follow from one data set must not become the run's wish, which the others would take over."""
    from library.options import command_line
    from library.training import outputs

    kept = []
    monkeypatch.setattr(outputs, "closing_words", lambda run, *_: kept.append(run) or "")
    (images / "sets.toml").write_text(TWO_SETS.replace("'<", f"'{images.as_posix()}/").replace(">'", "'"))
    run(dataset_config=str(images / "sets.toml"), max_train_steps=1)
    (trained,) = kept
    config, _ = checks.check(*command_line.parse(command_line.to_arguments(trained.settings)))
    model = trained.model
    again = find_set(config, None)
    rules = [resolve_resolution(own, model.resolution, model.size_step) for own in again.configs(config)]
    assert rules == [own.rule for own in trained.plan.sets]
    assert len(set(rules)) == 2
