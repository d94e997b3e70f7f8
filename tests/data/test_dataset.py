"""Plan, preflight and batches: every sample as often as promised, and the same bits wherever one starts."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from library import messages
from library.contracts import Sample
from library.data import plan as planning
from library.data.buckets import BucketRule, resolve_resolution
from library.data.cache import LatentCache, TextCache
from library.data.dataset import Dataset, captions_wanted, latents_wanted
from library.data.folders import Folder
from library.data.samples import Samples, find_samples
from library.messages import UserError
from library.options.training import Config

RULE = BucketRule(64, 64, 32, 128, 16)


@pytest.fixture(autouse=True)
def _english():
    messages.set_language("en")
    yield
    messages.set_language("en")


def images(folder, sizes, captions=()):
    folder.mkdir(parents=True)
    rng = random.Random(folder.name)
    for index, size in enumerate(sizes):
        image = Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3)))
        image.paste((255, 255, 255), (0, 0, size[0] // 3, size[1] // 2))
        image.save(folder / f"{index}.png")
    for index, caption in enumerate(captions):
        (folder / f"{index}.txt").write_text(caption, encoding="utf-8")


SHAPES = [(100, 80), (64, 64), (70, 140), (200, 90), (66, 61)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    images(root / "train/3_mytag", SHAPES, [f"mytag, tag {index}, red, blue" for index in range(5)])
    images(root / "train/1_other", SHAPES[:2])
    images(root / "reg/2_thing", SHAPES * 4)
    return find_samples(root / "train", root / "reg")


def make(found, **options):
    options = {"train_batch_size": 4, "max_train_epochs": 3, "max_data_loader_n_workers": 0, **options}
    config = Config(**options)
    return planning.make_plan(found, config, RULE), config


def dataset(*arguments, **options):
    return Dataset(*arguments, size_conditioning=lambda sizes: {"sizes": sizes}, **options)


def described(batch):
    content = batch.latents if batch.pixels is None else batch.pixels
    return (
        [sample.image_path for sample in batch.samples],
        batch.captions,
        batch.weights,
        batch.size_conditioning["sizes"],
        content,
    )


def assert_same(batches, others):
    assert len(batches) == len(others)
    for one, other in zip(batches, others, strict=True):
        for mine, theirs in zip(described(one), described(other), strict=True):
            assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs


CHANCE = {
    "flip_aug": True,
    "color_aug": True,
    "random_crop": True,
    "shuffle_caption": True,
    "caption_dropout_rate": 0.3,
    "caption_tag_dropout_rate": 0.2,
    "cache_latents": False,
}

# ---- samples, batches, epochs ----

AMOUNTS = st.lists(st.tuples(st.integers(1, 5), st.sampled_from(SHAPES)), min_size=1, max_size=8)


def imagined(amounts, is_regularization):
    return [
        Sample(Path(f"{is_regularization}{index}"), "", *size, "1_a", repeats, is_regularization)
        for index, (repeats, size) in enumerate(amounts)
    ]


@settings(max_examples=60, deadline=None)
@given(AMOUNTS, st.one_of(st.just([]), AMOUNTS), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_every_sample_is_seen_as_often_as_promised_and_steps_are_exact(train, reg, batch_size, epoch, rotate):
    found = Samples(imagined(train, False), imagined(reg, True), [])
    plan, _ = make(found, train_batch_size=batch_size, max_train_epochs=4, reg_rotate=rotate)
    batches = planning.batches_of_epoch(plan, 1, epoch)
    seen = Counter(sample for batch in batches for sample in batch)
    assert seen == dict(planning.uses_of_epoch(plan, epoch))
    assert all(seen[sample] == sample.repeats for sample in found.train)
    assert len(batches) == plan.batch_counts[epoch - 1]
    for batch in batches:
        assert len({plan.fit(sample).bucket for sample in batch}) == 1
    by_bucket = Counter()
    for sample, count in seen.items():
        by_bucket[plan.fit(sample).bucket] += count
    assert len(batches) == sum(-(-count // batch_size) for count in by_bucket.values())


def test_steps_of_the_guides_example():
    """30 images x 6 repeats x 10 epochs at batch 1 are 1800 steps; with regularization images 3600."""
    train = [Sample(Path(f"t{index}"), "", 64, 64, "6_cloths", 6, False) for index in range(30)]
    reg = [Sample(Path(f"r{index}"), "", 64, 64, "1_cloths", 1, True) for index in range(300)]
    assert make(Samples(train, [], []), train_batch_size=1, max_train_epochs=10)[0].step_count == 1800
    assert make(Samples(train, reg, []), train_batch_size=1, max_train_epochs=10)[0].step_count == 3600


def test_a_step_sees_the_batches_of_all_processes(found):
    config = Config(gradient_accumulation_steps=2, max_train_epochs=1)
    assert planning.make_plan(found, config, RULE, process_count=12).batches_per_step == 24


def test_accumulation_rounds_up_in_each_epoch(found):
    plan, _ = make(found, gradient_accumulation_steps=4)
    assert plan.step_counts == [-(-count // 4) for count in plan.batch_counts]


def test_max_train_steps_wins_and_ends_within_an_epoch(found):
    per_epoch = make(found)[0].step_counts
    plan, _ = make(found, max_train_steps=sum(per_epoch[:2]) + 3, max_train_epochs=1)
    assert plan.step_counts == [*per_epoch[:2], 3]
    with pytest.raises(UserError, match="both None"):
        make(found, max_train_steps=None, max_train_epochs=None)


def test_epochs_and_seeds_differ_and_the_global_stream_stays_untouched(found):
    plan, config = make(found)
    random.seed(5)
    torch.manual_seed(5)
    before = random.getstate(), torch.get_rng_state()
    orders = [
        [sample.image_path for batch in dataset(plan, config, seed).batches(epoch) for sample in batch.samples]
        for seed, epoch in ((1, 1), (1, 2), (2, 1))
    ]
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_batches_are_shuffled_among_buckets_and_samples_within(found):
    plan, _ = make(found, train_batch_size=2)
    batches = planning.batches_of_epoch(plan, 1, 1)
    buckets = [plan.fit(batch[0]).bucket for batch in batches]
    assert buckets != sorted(buckets)
    whole_buckets = planning.batches_of_epoch(make(found, train_batch_size=99)[0], 1, 1)
    assert any(batch != sorted(batch, key=batch.index) for batch in whole_buckets)  # an image's repeats are spread


@pytest.mark.parametrize("threads", [0, 3])
def test_continuing_at_any_batch_equals_never_having_stopped(found, threads):
    plan, config = make(found, **CHANCE, max_data_loader_n_workers=threads)
    unbroken = list(dataset(plan, config, 7).batches(2))
    for start in range(len(unbroken) + 1):
        random.random()  # whatever else draws from the global stream
        assert_same(list(dataset(plan, config, 7).batches(2, start)), unbroken[start:])


def test_threads_change_nothing(found):
    plan, config = make(found, **CHANCE)
    threaded = replace(config, max_data_loader_n_workers=3)
    assert_same(
        list(dataset(plan, config, 7).batches(1)),
        list(dataset(plan, threaded, 7).batches(1)),
    )


def test_uses_of_one_image_differ_by_chance(found):
    plan, config = make(found, **CHANCE)
    uses = {}
    for batch in dataset(plan, config, 7).batches(1):
        for sample, caption, pixels in zip(batch.samples, batch.captions, batch.pixels, strict=True):
            uses.setdefault(sample.image_path, []).append((caption, pixels))
    several = [made for made in uses.values() if len(made) > 1]
    assert all(not torch.equal(made[0][1], made[1][1]) for made in several)
    assert len({caption for made in several for caption, _ in made if "tag" in caption}) > 5  # of five images


def test_a_reader_who_stops_early_leaves_no_threads(found):
    import threading

    before = threading.active_count()
    plan, config = make(found, max_data_loader_n_workers=2)
    batches = dataset(plan, config, 1).batches(1)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_batches_carry_weights_sizes_and_pixels(found):
    plan, config = make(found, prior_loss_weight=0.25)
    for batch in dataset(plan, config, 1).batches(1):
        width, height = plan.fit(batch.samples[0]).bucket
        count = len(batch.samples)
        assert batch.pixels.shape == (count, 3, height, width)
        assert batch.pixels.abs().max() <= 1
        assert batch.latents is None
        assert batch.text_embeddings is None
        assert batch.weights.tolist() == [0.25 if sample.is_regularization else 1.0 for sample in batch.samples]
        sizes = batch.size_conditioning["sizes"]
        assert sizes[:, :2].tolist() == [[sample.height, sample.width] for sample in batch.samples]
        assert sizes[:, 4:].tolist() == [[height, width]] * count


def encode(pixels):
    return torch.nn.functional.avg_pool2d(pixels, 8)


def encode_captions(texts):
    return {"states": torch.tensor([[[float(len(text))]] for text in texts])}


def test_cached_batches_are_the_fresh_ones_encoded(found):
    options = {"flip_aug": True, "caption_dropout_rate": 0.3}
    plan, config = make(found, **options)
    latents, texts = LatentCache(None, "vae"), TextCache(None, "te", ("states",))
    latents.fill(latents_wanted(plan, config), encode, batch_size=3)
    texts.fill(captions_wanted(plan, config), encode_captions)
    for epoch in (1, 3):
        cached = list(dataset(plan, config, 1, latents=latents, texts=texts).batches(epoch))
        for one, fresh in zip(cached, dataset(plan, config, 1).batches(epoch), strict=True):
            assert one.captions == fresh.captions
            assert one.pixels is None
            torch.testing.assert_close(one.latents, encode(fresh.pixels), atol=1e-3, rtol=0)
            assert one.text_embeddings["states"][:, 0, 0].tolist() == [len(text) for text in one.captions]


def test_only_images_that_will_be_used_are_cached(found):
    plan, config = make(found, max_train_epochs=1)
    wanted = {sample.image_path for sample, _, _ in latents_wanted(plan, config)}
    used = {sample.image_path for batch in planning.batches_of_epoch(plan, 1, 1) for sample in batch}
    assert wanted == used
    assert len(wanted) < len(found.train) + len(found.regularization)


def test_a_use_of_captions_that_only_chance_knows_is_not_cached(found):
    plan, config = make(found, shuffle_caption=True)
    assert captions_wanted(plan, config) is None


# ---- metadata ----


def test_metadata_as_sd_scripts_writes_it(found):
    plan, _ = make(found)
    facts = planning.metadata(plan)
    assert facts["ss_num_train_images"] == 17
    assert facts["ss_num_reg_images"] == 40
    assert facts["ss_dataset_dirs"] == {
        "1_other": {"n_repeats": 1, "img_count": 2}, "3_mytag": {"n_repeats": 3, "img_count": 5}}  # fmt: skip
    assert facts["ss_reg_dataset_dirs"] == {"2_thing": {"n_repeats": 2, "img_count": 20}}
    assert facts["ss_tag_frequency"]["3_mytag"]["mytag"] == 5
    assert facts["ss_tag_frequency"]["2_thing"] == {"thing": 20}
    buckets = facts["ss_bucket_info"]["buckets"]
    assert sum(bucket["count"] for bucket in buckets.values()) == 17 + 18
    assert list(buckets) == [str(index) for index in range(len(buckets))]
    assert facts["ss_num_batches_per_epoch"] == plan.batch_counts[0]
    aspects = [
        abs(plan.fit(s).bucket[0] / plan.fit(s).bucket[1] - s.width / s.height)
        for s, _ in planning.uses_of_epoch(plan, 1)
    ]
    assert facts["ss_bucket_info"]["mean_img_ar_error"] == pytest.approx(sum(aspects) / len(aspects))


# ---- the preflight ----


def test_the_table_in_english(found):
    plan, config = make(found, gradient_accumulation_steps=2)
    lines = planning.plan_table(plan, config).splitlines()
    assert lines[:4] == [
        "folder                    images  repeats  samples per epoch  captions",
        '1_other                        2        1                  2  2 from the folder\'s name, "other"',
        "3_mytag                        5        3                 15  5 from files",
        '2_thing (regularization)      20        2                 18  20 from the folder\'s name, "thing"',
    ]
    assert lines[5] == "bucket  images  samples  batches"
    assert sum(int(line.split()[2]) for line in lines[6 : lines.index("", 6)]) == 35
    assert lines[-5].startswith(
        "regularization: 9 of 20 images per epoch, 2 times each, 18 samples; they rotate, 20 of 20 over all epochs"
    )
    assert lines[-5].endswith("captions are read from their files (reg_captions = True)")
    assert lines[-4].startswith("validation: none, with fewer than 10 images")
    batches = plan.batch_counts[0]
    steps = (
        f"35 samples in batches of 4, each from one bucket: {batches} batches / 2 accumulated = {plan.step_counts[0]}"
    )
    assert any(steps in line for line in lines)
    assert lines[-1] == f"run: 3 epochs, {plan.step_count} steps in total"


def test_the_table_in_chinese_is_aligned_by_columns_of_the_screen(found):
    messages.set_language("zh")
    plan, config = make(found)
    lines = planning.plan_table(plan, config).splitlines()
    assert lines[0] == "目录               图片  重复  每轮样本  标注"
    assert lines[3] == "2_thing（正则化）    20     2        18  20 个用目录名“thing”"
    assert "各轮轮流使用，全部轮次共用到 20 张" in "\n".join(lines)


def test_the_table_says_when_reg_captions_are_not_read(found):
    plan, config = make(replace(found, reg_captions=False))
    text = planning.plan_table(plan, config)
    assert "caption files are not read, the folder's name is the caption (reg_captions = False)" in text
    assert "regularization: none" in planning.plan_table(*make(replace(found, regularization=[])))


def test_images_smaller_than_their_bucket_are_named(found):
    plan, config = make(found)
    assert planning.check(plan, config) == []
    plan = planning.make_plan(found, config, resolve_resolution(Config(resolution=128), 64, 16))
    (line,) = planning.check(plan, config)
    assert "are smaller than the bucket and enlarged, which teaches blur: 3_mytag/4.png (x2.1)" in line


def test_much_cropping_is_named(found):
    plan = planning.make_plan(found, Config(), BucketRule(64, 64, 32, 128, 16, enable_bucket=False))
    (line,) = [line for line in planning.check(plan, Config()) if "third" in line]
    assert "3_mytag/3.png (55%)" in line


def test_regularization_images_that_are_never_used_are_counted(found):
    plan, config = make(found, reg_rotate=False)
    assert planning.check(plan, config)[-1] == (
        "11 of 20 regularization images are never used. reg_rotate = True rotates them"
    )
    plan, config = make(found, max_train_epochs=1)
    assert "More epochs would reach them" in planning.check(plan, config)[-1]


def test_captions_that_are_cut_are_named_with_their_length(found):
    def token_counts(texts):
        return [(160 if "tag 3" in text else 9, 150) for text in texts]

    plan, config = make(found)
    (line,) = planning.check(plan, config, token_counts=token_counts)
    assert "1 caption is longer than the 150 tokens that are read; the rest is cut: 3_mytag/3.txt (160)" in line


def test_everyday_words_are_warned_of_but_only_where_they_are_learnt(found):
    plan, config = make(found)
    (line,) = planning.check(plan, config, is_everyday_word=lambda word: word in ("other", "thing"))
    assert '1_other: "other" is a common word that the base model already knows' in line


def test_a_concept_that_no_caption_names_is_told(found):
    train = [replace(sample, caption="red, blue") if sample.repeats == 3 else sample for sample in found.train]
    plan, config = make(replace(found, train=train))
    (line,) = [line for line in planning.check(plan, config) if "none of its captions" in line]
    assert 'set caption_prefix = "mytag,"' in line
    plan, config = make(replace(found, train=train), caption_prefix="mytag,")
    assert not any("none of its captions" in line for line in planning.check(plan, config))


def test_spaces_and_underscores_are_the_same_concept(tmp_path):
    folder = Folder(tmp_path / "1_my tag", 1, "my tag", False, 1, 1)
    sample = Sample(folder.path / "a.png", "My_tag, red", 64, 64, folder.name, 1, False)
    plan, config = make(Samples([sample], [], [folder]))
    assert planning.check(plan, config) == []


def test_previews_show_the_new_and_the_old(small_set):
    train, reg = small_set
    config = Config(train_data_dir=str(train), reg_data_dir=str(reg), resolution=64)
    plan = planning.make_plan(find_samples(train, reg), config, BucketRule(64, 64, 32, 128, 16))
    assert planning.typical_captions(plan, config) == [
        "mytag, red hair, smile", "mytag, blue hair", "person, hat 3", "person, hat 7"
    ]  # fmt: skip
    alone = planning.make_plan(find_samples(train), config, BucketRule(64, 64, 32, 128, 16))
    assert len(planning.typical_captions(alone, config)) == 3
