"""Images that are held out: never learnt, measured the same way every time, and the training does not notice."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from library.contracts import NoiseSpec, Sample
from library.data import held_out
from library.data.folders import Folder
from library.data.samples import Samples
from library.diffusion import losses, validation
from library.diffusion.noise import Process
from library.diffusion.validation import Measured, MeasuredBatch
from library.messages import Stopped, UserError
from library.options.training import Config
from tests.conftest import Result, draw_set, events

PROCESS = Process(NoiseSpec())
TIMES = [200, 400, 600, 800]


def plain(prediction, target, mask):
    return losses.per_sample(prediction, target, mask=mask)


def images_of(latents: torch.Tensor, predict, mask=None):
    """What `validation.losses` is given: batches of latents and a model."""

    def show(places: list[int]) -> MeasuredBatch:
        own = latents[places]
        return MeasuredBatch(own, None if mask is None else mask[places], lambda noisy, t: predict(own, noisy, t))

    return show


def knows_the_image(latents, noisy, t):
    """The noise, worked out from the image itself."""
    signal, sigma = (x[:, None, None, None] for x in (PROCESS.schedule.signal(t), PROCESS.schedule.sigma(t)))
    return (noisy - signal * latents) / sigma


def test_timesteps_are_sd_scripts():
    """The interior points of linspace(minimum, maximum, 6)."""
    for limits in ((0, 1000), (100, 900), (0, 10), (3, 4)):
        expected = np.linspace(*limits, 6, dtype=int)[1:-1].tolist()
        assert validation.timesteps(*limits, 4) == expected
    assert validation.timesteps(0, 1000, 4) == TIMES


def test_a_model_that_knows_the_image_has_no_loss_and_a_mute_one_the_noises():
    latents = torch.randn(5, 4, 8, 8)
    batches = [[0, 3], [4, 1, 2]]
    exact = validation.losses(batches, images_of(latents, knows_the_image), PROCESS.corrupt, plain, TIMES, 1)
    assert sorted(exact) == list(range(5))
    assert all(float(rows.max()) < 1e-9 for rows in exact.values())

    mute = images_of(latents, lambda own, noisy, t: torch.zeros_like(noisy))
    rows = validation.losses(batches, mute, PROCESS.corrupt, plain, TIMES, 1)
    for place in range(5):  # of epsilon the target is the noise itself
        expected = validation.noise_of(1, place, (4, 4, 8, 8)).square().mean((1, 2, 3))
        torch.testing.assert_close(rows[place], expected)


def test_a_mask_leaves_out_what_is_not_learnt():
    latents, mask = torch.zeros(1, 4, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    mute = images_of(latents, lambda own, noisy, t: torch.zeros_like(noisy), mask)
    rows = validation.losses([[0]], mute, PROCESS.corrupt, plain, TIMES, 3)[0]
    expected = validation.noise_of(3, 0, (4, 4, 8, 8))[..., :4].square().mean((1, 2, 3)) / 2
    torch.testing.assert_close(rows, expected)


def test_the_numbers_are_the_same_twice_in_any_batches_and_no_stream_of_chance_moves():
    latents = torch.randn(6, 4, 8, 8)
    show = images_of(latents, lambda own, noisy, t: 0.3 * noisy)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = validation.losses([[0, 1, 2], [3, 4, 5]], show, PROCESS.corrupt, plain, TIMES, 5)
    again = validation.losses([[5, 3], [0, 4], [1, 2]], show, PROCESS.corrupt, plain, TIMES, 5)
    for place in range(6):
        torch.testing.assert_close(first[place], again[place])
    other = validation.losses([[0]], show, PROCESS.corrupt, plain, TIMES, 6)
    assert not torch.equal(first[0], other[0])
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_no_graph_is_kept():
    weight = torch.ones((), requires_grad=True)
    show = images_of(torch.zeros(1, 4, 8, 8), lambda own, noisy, t: weight * noisy)
    assert not validation.losses([[0]], show, PROCESS.corrupt, plain, TIMES, 1)[0].requires_grad


def test_the_gap_is_between_pairs():
    ours = {1: torch.tensor([1.0, 2.0]), 0: torch.tensor([3.0, 4.0])}
    theirs = {0: torch.tensor([2.0, 2.0]), 1: torch.tensor([1.0, 1.0])}
    measured = Measured.of([200, 800], ours, theirs, {})
    assert (measured.loss, measured.training_loss, measured.gap) == (2.5, 1.5, 1.0)
    assert measured.is_finite
    assert measured.values()["timesteps"] == [200, 800]
    rows = measured.values()["rows"]
    assert rows == {"held_out": [[3, 4], [1, 2]], "training": [[2, 2], [1, 1]], "regularization": []}
    assert not Measured.of([200, 800], ours, theirs, {0: torch.tensor([float("nan"), 0])}).is_finite


def passes(scope: held_out.Scope) -> int:
    return (2 * scope.held_out + scope.regularization) * scope.timesteps


@pytest.mark.parametrize("samples", [10, 60, 200, 2_000, 100_000])
@pytest.mark.parametrize(("held", "old"), [(2, 0), (2, 100), (16, 16), (500, 500)])
def test_measuring_takes_its_share_of_the_time_and_no_more(samples, held, old):
    scope = held_out.scope(held, old, samples, None)
    assert passes(scope) / scope.every <= 0.05 * 3 * samples
    assert min(held, 8) <= scope.held_out <= held
    assert 4 <= scope.timesteps <= 16
    assert scope.timesteps % 4 == 0
    assert scope.every == 1 or scope.timesteps == 4  # rather at fewer timesteps than after fewer epochs


def test_whoever_says_how_often_has_all_measured_as_often():
    assert held_out.scope(50, 9, 10, 1) == (50, 9, 4, 1)
    assert held_out.scope(50, 9, 10, 3) == (50, 9, 4, 3)


def test_batches_are_of_one_kind_and_hold_every_image_once():
    kinds = ["a", "b", "a", "a", "b"]
    batches = validation.groups(kinds, [2, 3, 2, 2, 3], seed=1)
    assert sorted(place for places in batches for place in places) == list(range(5))
    assert sorted(len(places) for places in batches) == [1, 2, 2]
    assert all(len({kinds[place] for place in places}) == 1 for places in batches)
    assert batches == validation.groups(kinds, [2, 3, 2, 2, 3], seed=1)


# ---- which images ----


def found_of(root: Path, *counts: int, repeats: int = 3) -> Samples:
    """Folders of files of so many different images; one regularization image."""
    samples, folders = [], []
    for subset, count in enumerate(counts):
        own = root / f"{repeats}_c{subset}"
        own.mkdir(parents=True)
        for number in range(count):
            path = own / f"{number:03}.png"
            path.write_bytes(f"{subset} {number}".encode())
            samples.append(Sample(path, "a, b", 64, 64, own.name, repeats, False, subset=subset))
        folders.append(Folder(own, repeats, f"c{subset}", False, image_count=count))
    reg = Sample(root / "reg.png", "", 64, 64, "1_reg", 1, True, subset=len(counts))
    reg.image_path.write_bytes(b"reg")
    return Samples(samples, [reg], [*folders, Folder(root, 1, "reg", True, image_count=1)])


@pytest.mark.parametrize(("counts", "share"), [((20,), 0.1), ((30, 10), 0.2), ((4, 4, 4), 0.25), ((1, 9), 0.3)])
def test_each_folder_gives_its_share_and_keeps_one(tmp_path, counts, share):
    found = found_of(tmp_path, *counts)
    for seed in range(20):
        split = held_out.split(found, share, seed)
        assert len(split.validation) == round(sum(counts) * share)
        assert {s.image_path for s in split.train} | {s.image_path for s in split.validation} == {
            s.image_path for s in found.train
        }
        assert not {s.image_path for s in split.train} & {s.image_path for s in split.validation}
        assert split.regularization == found.regularization
        for subset, count in enumerate(counts):
            held = sum(sample.subset == subset for sample in split.validation)
            assert held < count
            assert abs(held - count * share) <= 1
            assert split.folders[subset].image_count == count - held


def test_the_choice_follows_from_names_and_seed_alone(tmp_path):
    here, there = found_of(tmp_path / "here", 20), found_of(tmp_path / "there", 20)
    shuffled = replace(there, train=random.Random(0).sample(there.train, 20))

    def names(found, seed):
        return {sample.image_path.name for sample in held_out.split(found, 0.2, seed).validation}

    assert names(here, 1) == names(shuffled, 1)
    assert len({frozenset(names(here, seed)) for seed in range(5)}) > 1


def test_copies_of_a_held_out_image_are_not_learnt_either(tmp_path):
    found = found_of(tmp_path, 10, 10)
    for sample in found.train[10:]:  # the second folder holds the same images under other names
        sample.image_path.write_bytes((tmp_path / "3_c0" / sample.image_path.name).read_bytes())
    split = held_out.split(found, 0.3, 1)
    learnt = {sample.image_path.name for sample in split.train}
    held = [sample.image_path.name for sample in split.validation]
    assert len(held) == len(set(held)) == 3
    assert not learnt & set(held)
    assert len(split.train) == 14


@pytest.mark.parametrize(
    ("counts", "held"), [((9,), 0), ((10,), 1), ((20,), 2), ((40,), 4), ((9, 7), 2), ((1,) * 12, 0), ((400,), 16)]
)
def test_left_alone_a_tenth_of_ten_images_and_more_is_held_out(tmp_path, counts, held):
    found = found_of(tmp_path, *counts)
    split = held_out.split(found, "auto", 1)
    assert len(split.validation) == held
    assert split.warnings == found.warnings  # nobody asked for it


@pytest.mark.parametrize(
    ("counts", "share", "said"), [((12,), 0.04, "at least 0.05,"), ((25,), 0.02, "at least 0.03,"), ((1,), 0.9, "Add")]
)
def test_too_few_images_are_told_with_the_cure(tmp_path, counts, share, said):
    found = found_of(tmp_path, *counts)
    split = held_out.split(found, share, 1)
    assert split.train == found.train
    assert not split.validation
    assert said in split.warnings[-1]
    assert "validation_data_dir" in split.warnings[-1]
    if "0.0" in said:  # the cure works
        least = float(said.split()[-1].rstrip(","))
        assert len(held_out.split(found, least, 1).validation) == 1


def test_an_image_is_compared_with_one_of_its_size_and_folder(tmp_path):
    found = found_of(tmp_path, 6, 6)
    sizes = {sample.image_path: (64, 64) if place % 2 else (48, 80) for place, sample in enumerate(found.train)}

    def bucket(sample):
        return sizes[sample.image_path]

    held, train = found.train[:2] + found.train[6:8], found.train[2:6] + found.train[8:]
    pairs = list(zip(held, held_out.beside(held, train, bucket, 1), strict=True))
    assert all((bucket(a), a.folder) == (bucket(b), b.folder) for a, b in pairs)
    assert len({b.image_path for _, b in pairs}) == 4
    many = held_out.beside(found.train, train[:2], bucket, 1)  # fewer to compare with than are measured
    assert {sample.image_path for sample in many} == {sample.image_path for sample in train[:2]}


def test_nothing_is_left_to_chance(tmp_path):
    chance = dict(
        flip_aug=True, shuffle_caption=True, caption_dropout_rate=1.0, caption_tag_dropout_rate=0.9, random_crop=True,
        caption_dropout_every_n_epochs=1, token_warmup_step=100, caption_prefix="mytag,", enable_wildcard=True,
    )  # fmt: skip
    config = replace(Config(), **chance)
    sample = replace(found_of(tmp_path, 1).train[0], caption="{red|blue} hair, hat")
    fixed = held_out.fixed([sample], config)[0]
    assert fixed.caption == "mytag, red hair, hat"
    from library.data import captions, dataset

    assert not dataset.changes_images(fixed.options)
    assert not fixed.options.flip_aug
    assert {captions.process(fixed.caption, fixed.options, rng=random.Random(n), epoch=n) for n in range(9)} == {
        fixed.caption
    }


# ---- a run ----


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    """Ten images in two buckets, and four others: (train_data_dir, validation_data_dir)."""
    root = tmp_path_factory.mktemp("ten")
    sizes = [(64, 64)] * 7 + [(48, 80)] * 3
    draw_set(root / "train" / "1_mytag", [f"mytag, hat {n}" for n in range(10)], sizes)
    draw_set(root / "other", [f"mytag, coat {n}" for n in range(4)], [(64, 64)] * 3 + [(48, 80)], seed=9)
    return root / "train", root / "other"


def names_in_batches(monkeypatch) -> set[str]:
    from library.data.dataset import Dataset

    seen: set[str] = set()
    really = Dataset.batches

    def batches(self, *args, **kwargs):
        for batch in really(self, *args, **kwargs):
            seen.update(str(sample.image_path) for sample in batch.samples)
            yield batch

    monkeypatch.setattr(Dataset, "batches", batches)
    return seen


FEW = dict(max_train_epochs=2, text_encoder_lr=0, validate_every_n_epochs=1)  # so small a set is else measured seldom


@pytest.mark.parametrize(
    "options",
    [
        dict(text_encoder_lr=None, network_dropout=0.3, cache_latents_to_disk=True, max_train_epochs=2),
        dict(text_encoder_lr=0, cache_latents=False, flip_aug=True, shuffle_caption=True),
        dict(text_encoder_lr=0, optimizer_type="AdamWScheduleFree", lr_scheduler="constant"),
    ],
    ids=["text", "fresh", "averaged"],
)
def test_training_does_not_notice(run, ten, tmp_path, options):
    """Captions and latents kept or fresh, dropout off and on again, weights that are shown other than they are."""
    train, other = ten
    common = dict(train_data_dir=str(train), save_precision="float", max_train_epochs=1) | options
    measured = dict(validation_data_dir=str(other), validate_every_n_steps=5, validate_every_n_epochs=1)
    without = Result(run(output="without", cache_dir=str(tmp_path / "cache"), validation_split=0, **common), "")
    with_it = Result(run(output="with", cache_dir=str(tmp_path / "other cache"), **measured, **common), "")
    assert [event["loss"] for event in without.steps] == [event["loss"] for event in with_it.steps]
    ours, theirs = without.weights, with_it.weights
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    count = len(with_it.steps)
    told = [event["step"] for event in events(with_it.folder, "validation")]
    per_epoch = count // common["max_train_epochs"]
    assert told == sorted({0, *range(5, count + 1, 5), *range(per_epoch, count + 1, per_epoch)})
    assert with_it.metadata["ss_num_validation_images"] == "4"


def test_held_out_images_are_in_no_batch(run, ten, monkeypatch, capsys):
    seen = names_in_batches(monkeypatch)
    folder = run(train_data_dir=str(ten[0]), reg_data_dir=None, validation_split=0.3, **FEW)
    assert len(seen) == 7
    said = capsys.readouterr().out
    assert "validation: 3 images are held out for validation (validation_split), measured every epoch" in said
    metadata = Result(folder, "").metadata
    assert metadata["ss_num_train_images"] == "7"
    assert metadata["ss_num_validation_images"] == "3"
    assert metadata["ss_validation_split"] == "0.3"
    assert metadata["ss_validation_seed"] == "None"
    assert json.loads(metadata["ss_dataset_dirs"]) == {"1_mytag": {"n_repeats": 1, "img_count": 7}}


def test_what_is_told(run, ten, capsys, monkeypatch):
    """The event's numbers are those of a measurement by hand, the curves have sd-scripts' names."""
    from library.reporting import trackers

    points = []

    class Tracker:
        def add_scalar(self, *point):
            points.append(point)

        def close(self):
            pass

    monkeypatch.setattr(trackers, "open_trackers", lambda *args, **kwargs: Tracker())
    options = dict(train_data_dir=str(ten[0]), validation_split=0.2, validate_every_n_steps=4, max_train_epochs=1)
    folder = run(reg_data_dir=None, text_encoder_lr=0, **options)
    unchanged, first, last = events(folder, "validation")
    assert [event["step"] for event in (unchanged, first, last)] == [0, 4, len(events(folder))] == [0, 4, 5]
    assert [event["ends_epoch"] for event in (unchanged, first, last)] == [True, False, True]
    assert last["timesteps"] == TIMES
    for name, rows in (("loss", "held_out"), ("training_loss", "training")):
        assert np.shape(last["rows"][rows]) == (2, 4)
        assert last[name] == pytest.approx(np.mean(last["rows"][rows]), rel=1e-5)
    (named,) = events(folder, "held out")
    assert [len(named[kind]) for kind in ("held_out", "training", "regularization")] == [2, 2, 0]
    assert not set(named["held_out"]) & set(named["training"])
    assert last["gap"] == pytest.approx(last["loss"] - last["training_loss"], abs=1e-6)
    drawn = [point for point in points if "validation" in point[0]]
    assert drawn[:2] == [
        ("loss/validation/epoch_average", unchanged["loss"], 0),
        ("loss/validation/epoch_divergence", unchanged["gap"], 0),
    ]
    assert drawn[2:] == [
        ("loss/validation/step_average", first["loss"], 4),
        ("loss/validation/step_divergence", first["gap"], 4),
        ("loss/validation/epoch_average", last["loss"], 1),
        ("loss/validation/epoch_divergence", last["gap"], 1),
    ]
    line = f"validation after step 5: loss {last['loss']:.4f}, of training images {last['training_loss']:.4f}, gap "
    assert line in capsys.readouterr().out


def test_a_resumed_run_validates_at_the_same_steps_with_the_same_numbers(run, ten, monkeypatch):
    from library.training.stop import Stop

    options = dict(train_data_dir=str(ten[0]), validation_split=0.2, validate_every_n_steps=3, reg_data_dir=None, **FEW)
    clock = dict(time=0, seconds=0)
    whole = [event | clock for event in events(run(output="whole", **options), "validation")]
    assert [event["step"] for event in whole] == [0, 3, 5, 6, 9, 10]
    for stop_at in (3, 5):  # at step 5 the epoch ends, and it is not validated before the stop
        count = iter(range(1, 99))
        with monkeypatch.context() as patch:
            patch.setattr(
                Stop, "requested", lambda self, count=count, at=stop_at: "file" if next(count) == at else None
            )
            with pytest.raises(Stopped):
                run(output=f"part{stop_at}", **options)
        resumed = run(output=f"part{stop_at}", **options)
        told = [event | clock for event in events(resumed, "validation")]
        assert told == whole


def test_validating_twice_at_a_step_measures_once(run, ten, monkeypatch):
    from library.training import validate

    count = []
    really = validate.measure
    monkeypatch.setattr(validate, "measure", lambda *given, **how: count.append(1) or really(*given, **how))
    options = dict(train_data_dir=str(ten[0]), reg_data_dir=None, validation_split=0.2, validate_every_n_steps=5)
    run(**options, **FEW)  # 5 steps make an epoch
    assert len(count) == 1 + 2  # the unchanged model first


def test_dropout_is_off_while_it_measures_and_on_again_after(run, ten, monkeypatch):
    from library.training import validate

    compared = []
    really = validate.measure

    def twice(run, training, **how):
        before = torch.get_rng_state()
        first, second = (really(run, training, **how) for _ in range(2))
        layers = training.adapters.layers.values()
        same = torch.equal(first.held_out, second.held_out) and torch.equal(before, torch.get_rng_state())
        compared.append(same and all(layer.training for layer in layers))
        return first

    monkeypatch.setattr(validate, "measure", twice)
    options = dict(train_data_dir=str(ten[0]), reg_data_dir=None, validation_split=0.2, network_dropout=0.5)
    run(max_train_epochs=1, **options)
    assert compared == [True, True]


def test_what_is_not_finite_is_said_and_not_written(run, ten, monkeypatch, capsys):
    from library.training import validate

    bad = Measured([200], torch.tensor([[float("nan")]]), torch.ones(1, 1), torch.empty(0, 1))
    monkeypatch.setattr(validate, "measure", lambda *given, **how: bad)
    folder = run(train_data_dir=str(ten[0]), validation_split=0.2, **FEW | dict(max_train_epochs=1))
    assert not events(folder, "validation")
    assert "validation after step 9: NaN or infinity" in capsys.readouterr().out


def test_a_share_of_less_than_an_image_is_told_and_trained(run, capsys):
    folder = run(validation_split=0.1, max_train_epochs=1, text_encoder_lr=0)
    assert "validation_split = 0.1 holds out none of 3 images" in capsys.readouterr().out
    assert not events(folder, "validation")


def test_less_is_measured_where_that_is_asked_for(run, ten, monkeypatch):
    from library.data.dataset import Dataset

    shown = []
    really = Dataset.batch_of
    monkeypatch.setattr(Dataset, "batch_of", lambda self, samples: shown.append(len(samples)) or really(self, samples))
    options = dict(train_data_dir=str(ten[0]), validation_data_dir=str(ten[1]), max_train_epochs=1, text_encoder_lr=0)
    options["validate_every_n_epochs"] = 1
    run(output="all", **options)
    of_all = list(shown)
    shown.clear()
    run(output="some", max_validation_steps=1, reg_data_dir=None, **options)
    assert sum(of_all) == 2 * (4 + 4 + 4)  # held out, beside, regularization; unchanged and at the end
    assert len(shown) >= 4
    assert sum(shown) == 4 * shown[0]  # a batch and those beside, twice


def test_no_memory_for_it_ends_nothing(run, ten, monkeypatch, capsys):
    from library.training import validate

    def full(*given, **how):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(validate, "measure", full)
    run(train_data_dir=str(ten[0]), validation_split=0.2, **FEW)
    assert "no validation: not enough memory" in capsys.readouterr().out


def test_a_folder_of_learnt_images_is_refused(run, ten, tmp_path):
    copied = tmp_path / "copied"
    copied.mkdir()
    shutil.copy(ten[0] / "1_mytag" / "3.png", copied / "new name.png")
    with pytest.raises(UserError, match=r"1 of its images are also trained on.*: new name.png = 1_mytag/3.png"):
        run(train_data_dir=str(ten[0]), validation_data_dir=str(copied))
    with pytest.raises(UserError, match="can't be combined with validation_data_dir"):
        run(train_data_dir=str(ten[0]), validation_data_dir=str(ten[1]), validation_split=0.1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"validation_data_dir = .*empty: no \[repeats\]_\[concept\] folder"):
        run(train_data_dir=str(ten[0]), validation_data_dir=str(tmp_path / "empty"))


def test_folders_with_repeats_are_taken_too(run, ten, tmp_path):
    shutil.copytree(ten[1], tmp_path / "valid" / "5_mytag")
    options = dict(train_data_dir=str(ten[0]), max_train_epochs=1, text_encoder_lr=0)
    folders = [
        run(output=f"{n}", validation_data_dir=str(d), **options) for n, d in enumerate((ten[1], tmp_path / "valid"))
    ]
    first, second = (events(folder, "validation")[0] for folder in folders)
    assert first["loss"] == second["loss"]  # each image once


def test_options_of_a_validation_that_there_is_not_say_so():
    from library.options import checks

    given = dict(validation_seed=3, validate_every_n_steps=5, validate_every_n_epochs=2, max_validation_steps=1)
    given["early_stop"] = 3
    _, warnings = checks.check(given | dict(validation_split=0), {})
    for name in given:
        assert any(name in line and "has no effect without validation_split" in line for line in warnings)
    for split in (0.2, "auto"):
        _, warnings = checks.check(given | dict(validation_split=split), {})
        assert not any("validation_split" in line for line in warnings)


# ---- the best epoch ----


def measuring(monkeypatch, *losses_of_epochs: float) -> None:
    """Let epochs have these losses; the unchanged model has 1."""
    from library.training import validate

    def measure(run, training, *, is_unchanged):
        step = training.schedule.last_epoch
        epoch = step // run.plan.step_counts[0]
        rows = torch.full((2, 4), 1.0 if is_unchanged else losses_of_epochs[epoch - 1])
        return Measured(TIMES, rows, rows, torch.empty(0, 4))

    monkeypatch.setattr(validate, "measure", measure)


@pytest.fixture
def best_run(run, ten):
    def start(output="out", **options):
        few = FEW | dict(max_train_epochs=4, save_every_n_epochs=1, reg_data_dir=None, train_batch_size=4)
        return run(output=output, train_data_dir=str(ten[0]), **few | options)

    return start


def same(first: Path, second: Path) -> bool:
    return torch.equal(*(torch.cat([t.flatten() for t in load_file(path).values()]) for path in (first, second)))


def test_the_recommended_epoch_is_left_as_a_copy(best_run, monkeypatch, capsys):
    measuring(monkeypatch, 0.5, 0.51, 0.9, 0.8)
    folder = best_run()
    assert same(folder / "it-best.safetensors", folder / "it-000002.safetensors")
    assert not same(folder / "it-best.safetensors", folder / "it-000003.safetensors")
    said = capsys.readouterr().out
    assert (
        "Use epoch 2: no other epoch has a clearly lower loss on held-out images. Epochs 1-2 can't be separated" in said
    )
    assert f"that epoch's file: {folder / 'it-best.safetensors'}" in said
    assert not list(best_run(output="without", keep_best=False).glob("*-best*"))


def test_the_best_of_an_interrupted_run_may_lie_before_the_interruption(best_run, monkeypatch):
    from library.training.stop import Stop

    measuring(monkeypatch, 0.9, 0.5, 0.8, 0.8)
    whole = best_run(output="whole")
    count = iter(range(1, 99))
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "requested", lambda self: "file" if next(count) == 11 else None)
        with pytest.raises(Stopped):
            best_run(output="part")
    part = best_run(output="part")
    assert same(whole / "it-best.safetensors", part / "it-best.safetensors")


def test_a_run_that_gains_nothing_ends_early(best_run, monkeypatch, capsys):
    measuring(monkeypatch, 0.5, 0.6, 0.7, 0.4)
    folder = best_run(early_stop=2, resume="auto")
    assert max(event["epoch"] for event in events(folder)) == 3
    assert "has not fallen for 2 measurements" in capsys.readouterr().out
    assert same(folder / "it.safetensors", folder / "it-000003.safetensors")
    assert same(folder / "it-best.safetensors", folder / "it-000001.safetensors")
    assert not (folder / "it-state").exists()  # it is finished, not interrupted
    assert max(event["epoch"] for event in events(best_run(output="on", early_stop=3))) == 4
