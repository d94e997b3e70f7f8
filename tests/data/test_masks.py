"""Masks go the image's way to the latents, and what they hide is not learnt; what is wrong with them is told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from library.contracts import Fit, Mask, Sample
from library.data import decoding, masks
from library.data import plan as planning
from library.data.buckets import BucketRule
from library.data.cache import LatentCache
from library.data.dataset import Dataset, latents_wanted
from library.data.samples import find_samples
from library.diffusion import losses
from library.messages import UserError, set_language
from library.options.training import Config
from tests.conftest import draw_set, events
from train_network import Inputs


def grey(path: Path, values) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)
    return path


def noise(height: int, width: int, block: int = 1, seed: int = 0) -> np.ndarray:
    """(height, width) uint8 in blocks of one grey."""
    values = np.random.default_rng(seed).integers(0, 256, (-(-height // block), -(-width // block)), np.uint8)
    return values.repeat(block, 0).repeat(block, 1)[:height, :width]


def sample(folder: Path, mask, size: tuple[int, int], is_alpha: bool = False) -> Sample:
    path = None if mask is None else grey(folder / "masks" / "a.png", mask)
    return Sample(folder / "a.png", "", *size, "1_a", 1, False, mask=Mask(path, is_alpha, 0.5))


def area(values: np.ndarray, rows: int, columns: int) -> torch.Tensor:
    """torch's own averages: exact where sides are whole multiples."""
    return functional.interpolate(torch.from_numpy(values.astype(np.float64))[None, None], (rows, columns), mode="area")


# ---- arithmetic ----


@pytest.mark.parametrize("size", [(8, 8), (1, 3), (24, 40)])
def test_averages_are_those_of_torch_where_cells_are_whole_pixels(size):
    values = noise(24, 120)
    ours = masks.averaged(values, (0, 0, 120, 24), (size[1], size[0]))
    torch.testing.assert_close(torch.from_numpy(ours), area(values, *size)[0, 0])


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (3, 16), (11, 13)])
def test_averages_are_exact_where_cells_cut_through_pixels(rows, columns):
    """Each pixel repeated until cells are whole again."""
    values = noise(8, 10)
    ours = masks.averaged(values, (0, 0, 10, 8), (columns, rows))
    fine = values.repeat(rows, 0).repeat(columns, 1)
    torch.testing.assert_close(torch.from_numpy(ours), area(fine, rows, columns)[0, 0])


def test_a_grid_within_the_image_sees_only_that_part():
    values = noise(20, 30)
    ours = masks.averaged(values, (2.5, 3.25, 27.5, 18.25), (5, 3))
    fine = values.repeat(4, 0).repeat(4, 1)[13:73, 10:110]
    torch.testing.assert_close(torch.from_numpy(ours), area(fine, 3, 5)[0, 0])


def test_a_mask_is_resized_and_cropped_as_the_image_and_averaged_as_by_sd_scripts(tmp_path):
    """sd-scripts: area resize with the image, crop, area resize to the latents: 60 x 48 -> 40 x 32 -> 32 x 32."""
    mask = noise(48, 60)
    fit = Fit((32, 32), (40, 32), (5, 0))
    ours = masks.load(sample(tmp_path, mask, (60, 48)), fit, 8)
    resized = area(mask.repeat(2, 0).repeat(2, 1), 32, 40)
    expected = functional.interpolate(resized[..., 5:37], (4, 4), mode="area")[0, 0] / 255
    assert ours.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(ours).double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [0.5, 3])
def test_a_mask_of_another_size_of_the_same_shape_means_the_same(tmp_path, factor):
    mask = noise(48, 64, block=8)
    height, width = int(48 * factor), int(64 * factor)
    fit = Fit((40, 40), (53, 40), (6, 0))
    own = masks.load(sample(tmp_path, mask, (64, 48)), fit, 8)
    other = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    np.testing.assert_allclose(masks.load(sample(tmp_path, other, (64, 48)), fit, 8), own, atol=1e-6)


def test_black_and_white_stay_exactly_0_and_1(tmp_path):
    for value in (0, 255):
        mask = np.full((1001, 777), value)
        ours = masks.load(sample(tmp_path, mask, (777, 1001)), Fit((48, 64), (50, 64), (1, 0)), 8)
        assert ours.shape == (8, 6)
        assert (ours == value / 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_of_every_mode_are_read(tmp_path, mode):
    """Left half white, right half black."""
    image = Image.new("L", (8, 4))
    image.paste(255, (0, 0, 4, 4))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    image = image if mode == "I;16" else image.convert(mode)
    image.save(tmp_path / "a.png")
    assert masks.read_mask(tmp_path / "a.png").tolist() == [[255] * 4 + [0] * 4] * 4


def test_what_is_transparent_in_a_mask_is_not_learnt_and_colours_count_by_their_red(tmp_path):
    image = Image.new("RGBA", (4, 1), (255, 255, 255, 255))
    for x, colour in enumerate([(255, 255, 255, 0), (255, 255, 255, 128), (0, 255, 255, 255)]):
        image.putpixel((x, 0), colour)
    image.save(tmp_path / "a.png")
    assert masks.read_mask(tmp_path / "a.png").tolist() == [[0, 128, 0, 255]]


def test_a_red_mask_is_learnt_as_in_sd_scripts(tmp_path):
    for colour, learnt in (("red", 255), ("blue", 0), ("lime", 0), ("yellow", 255)):
        Image.new("RGB", (2, 2), colour).save(tmp_path / "a.png")
        assert masks.read_mask(tmp_path / "a.png").tolist() == [[learnt] * 2] * 2


def test_a_mask_that_lies_on_its_side_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(4, 8)).save(tmp_path / "a.png", exif=exif)
    assert (masks.read_mask(tmp_path / "a.png") == np.rot90(noise(4, 8), -1)).all()


def test_mask_and_transparency_are_multiplied_at_the_images_size(tmp_path):
    alpha, mask = noise(32, 32), noise(16, 16, seed=1)
    image = Image.new("RGB", (32, 32))
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "a.png")
    fit = Fit((32, 32), (32, 32), (0, 0))
    alone = masks.load(sample(tmp_path, None, (32, 32), is_alpha=True), fit, 8)
    torch.testing.assert_close(torch.from_numpy(alone).double(), area(alpha, 4, 4)[0, 0] / 255, rtol=0, atol=1e-6)
    both = masks.load(sample(tmp_path, mask, (32, 32), is_alpha=True), fit, 8)
    product = alpha / 255.0 * mask.repeat(2, 0).repeat(2, 1)
    torch.testing.assert_close(torch.from_numpy(both).double(), area(product, 4, 4)[0, 0] / 255, rtol=0, atol=1e-6)
    only_file = masks.load(sample(tmp_path, mask, (32, 32)), fit, 8)
    torch.testing.assert_close(torch.from_numpy(only_file).double(), area(mask, 4, 4)[0, 0] / 255, rtol=0, atol=1e-6)


def test_a_mask_that_vanished_meanwhile_is_named(tmp_path):
    one = sample(tmp_path, noise(8, 8), (8, 8))
    one.mask.path.unlink()
    with pytest.raises(UserError, match=r"masks/a\.png: cannot be read.*start again"):
        masks.load(one, Fit((8, 8), (8, 8), (0, 0)), 8)


# ---- batches ----

RULE = BucketRule(64, 64, 32, 128, 16)


@pytest.fixture
def own_masks(tmp_path):
    """A set whose images are their own masks, of several shapes and sizes; and one without."""
    folder = tmp_path / "set" / "1_a"
    for index, (width, height) in enumerate([(64, 64), (64, 64), (48, 80), (128, 128), (150, 70), (90, 90)]):
        values = noise(height, width, block=height // 8, seed=index)
        grey(folder / f"{index}.png", values)
        grey(folder / "masks" / f"{index}.png", values)
    grey(folder / "whole.png", noise(64, 64, block=8, seed=9))
    return tmp_path / "set"


def batches_of(folder, **options):
    found = find_samples(folder)
    config = Config(**{"train_batch_size": 2, "max_train_epochs": 1, "max_data_loader_n_workers": 0, **options})
    plan = planning.make_plan(found, config, RULE)
    latents = None
    if config.cache_latents:
        latents = LatentCache(None, "vae")
        latents.fill(latents_wanted(plan, config), lambda pixels: functional.avg_pool2d(pixels, 8))
    dataset = Dataset(plan, config, 7, latents=latents)
    return [batch for epoch in range(1, 4) for batch in dataset.batches(epoch)]


@pytest.mark.parametrize(
    "options",
    [{}, {"flip_aug": True}, {"cache_latents": False, "random_crop": True, "enable_bucket": False, "flip_aug": True}],
    ids=["plain", "flipped", "cropped at random"],
)
def test_a_mask_meets_its_image_whatever_is_done_to_it(own_masks, options):
    """So an image's brightness at each place is its mask there, but for the kernels of resizing."""
    count = 0
    for batch in batches_of(own_masks, **options):
        if batch.masks is None:
            assert [sample.image_path.name for sample in batch.samples] == ["whole.png"] * len(batch.samples)
            continue
        shown = functional.avg_pool2d(batch.pixels, 8) if batch.latents is None else batch.latents
        assert batch.masks.shape == (len(shown), 1, *shown.shape[2:])
        for sample, mask, values in zip(batch.samples, batch.masks, shown, strict=True):
            expected = torch.ones_like(mask) if sample.mask is None else (values.mean(0, keepdim=True) + 1) / 2
            torch.testing.assert_close(mask, expected, rtol=0, atol=0.06)
            count += 1
    assert count >= 18


def test_a_mask_is_read_once_and_no_more_stay_in_memory_than_fit(own_masks, monkeypatch):
    read = []
    really = masks.read_mask
    monkeypatch.setattr(masks, "read_mask", lambda path: read.append(path.name) or really(path))
    find_samples(own_masks)
    read.clear()
    batches_of(own_masks)
    assert sorted(read[6:]) == [f"{index}.png" for index in range(6)]  # the first six were looked at by find
    monkeypatch.setattr(masks, "KEPT_BYTES", 0)
    read.clear()
    batches_of(own_masks)
    assert len(read) == 6 + 3 * 6
    assert masks.kept_count([(512, 512), (512, 1024)], 8) == 0
    monkeypatch.undo()
    assert masks.kept_count([(512, 512)], 8) == 4096


def test_a_part_of_a_batch_keeps_its_masks():
    mask = torch.rand(5, 1, 2, 2)
    first = (torch.arange(5.0) for _ in range(3))
    whole = Inputs(*first, mask, None, torch.ones(5), None, {"sizes": torch.zeros(5, 6)}, list("abcde"))
    parts = list(whole.split(2))
    assert [len(part.noisy) for part in parts] == [3, 2]
    assert torch.equal(torch.cat([part.mask for part in parts]), mask)
    assert [part.mask for part in replace(whole, mask=None).split(2)] == [None, None]


# ---- runs ----


@pytest.fixture
def half_masked(tmp_path, small_set):
    """half_masked("left") -> the small training set with masks that are white there ("left", "right" or "all")."""

    def make(side: str) -> str:
        folder = draw_set(
            tmp_path / side / "2_mytag", ["mytag, red", "mytag, blue", "mytag"], [(64, 64), (64, 64), (48, 80)]
        )
        for index, (width, height) in enumerate([(64, 64), (64, 64), (48, 80)]):
            values = np.zeros((height, width))
            left, right = {"left": (0, 20), "right": (20, width), "all": (0, width)}[side]
            values[:, left:right] = 255
            grey(folder / "masks" / f"{index}.png", values)
        return str(tmp_path / side)

    return make


def first_losses(folder: Path, count: int = 1) -> list[float]:
    return [event["loss"] for event in events(folder)][:count]


def test_losses_of_a_run_are_those_worked_out_plainly_from_the_files(run, half_masked, monkeypatch):
    seen, plain = [], losses.per_sample

    def per_sample(prediction, target, kind, huber_c, mask):
        seen.append((prediction.detach(), target, mask))
        return plain(prediction, target, kind, huber_c, mask)

    monkeypatch.setattr(losses, "per_sample", per_sample)
    out = run(train_data_dir=half_masked("left"), reg_data_dir=None, train_batch_size=1)
    assert len(seen) == len(events(out)) == 12
    for (prediction, target, mask), loss in zip(seen, first_losses(out, 12), strict=True):
        rows, columns = prediction.shape[2:]
        from_file = torch.zeros(rows * 8, columns * 8)
        from_file[:, :20] = 1
        expected = functional.interpolate(from_file[None, None], (rows, columns), mode="area")
        torch.testing.assert_close(mask, expected)
        assert set(mask.unique().tolist()) == {0.0, 0.5, 1.0}
        assert loss == pytest.approx(float(((prediction - target) ** 2 * expected).mean()), rel=1e-5)


def test_what_two_halves_teach_is_what_the_whole_teaches(run, half_masked):
    """Losses of the first step, before anything was learnt: the masks add up to white."""
    options = dict(reg_data_dir=None, train_batch_size=2, gradient_accumulation_steps=2, max_train_steps=1)
    left, right, whole = (
        first_losses(run(output=side, train_data_dir=half_masked(side), **options))[0]
        for side in ("left", "right", "all")
    )
    assert left + right == pytest.approx(whole, rel=1e-5)
    assert min(left, right) > 0.1 * whole


def test_white_masks_and_masks_that_are_not_used_change_no_bit(run, half_masked, tmp_path):
    white = run(output="white", train_data_dir=half_masked("all"))
    unused = run(output="unused", train_data_dir=half_masked("left"), masked_loss=False)
    assert first_losses(white, 12) == first_losses(unused, 12)
    masked = run(output="masked", train_data_dir=str(tmp_path / "left"))
    assert first_losses(masked, 12) != first_losses(unused, 12)


def test_regularization_images_without_masks_are_learnt_whole(run, half_masked):
    """Black masks: only they give a loss."""
    folder = Path(half_masked("left"))
    for path in folder.rglob("masks/*.png"):
        grey(path, np.zeros_like(np.asarray(Image.open(path))))
    masked = first_losses(run(output="a", train_data_dir=str(folder), train_batch_size=12, max_train_steps=1))
    whole = first_losses(
        run(output="b", train_data_dir=str(folder), train_batch_size=12, max_train_steps=1, masked_loss=False)
    )
    assert 0.2 * whole[0] < masked[0] < 0.8 * whole[0]


def test_other_masks_are_said_when_a_run_goes_on(run, half_masked, capsys):
    folder = half_masked("left")
    state = run(train_data_dir=folder, save_state=True) / "it-state"
    for epoch_count in (3, 4):
        capsys.readouterr()
        run(train_data_dir=folder, save_state=True, resume=str(state), max_train_epochs=epoch_count)
        said = capsys.readouterr().out
        assert ("the images, masks or captions have changed" in said) == (epoch_count == 4)
        for path in Path(folder).rglob("masks/*.png"):
            grey(path, np.asarray(Image.open(path))[:, ::-1])  # as white as before


def test_the_table_and_the_file_tell_of_masks(run, half_masked, capsys):
    from safetensors import safe_open

    out = run(train_data_dir=half_masked("left"))
    assert "masks: 3 of 11 images have one; on average 35% of their area is trained" in capsys.readouterr().out
    with safe_open(out / "it.safetensors", "pt") as file:
        assert file.metadata()["ss_masked_loss"] == "True"
    with safe_open(run(output="plain") / "it.safetensors", "pt") as file:
        assert file.metadata()["ss_masked_loss"] == "False"
    assert "masks:" not in capsys.readouterr().out


# ---- what is found, and what is told ----


def image(path: Path, size=(40, 30), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path, **options)
    return path


def mask(path: Path, size=(40, 30), white=0.5) -> Path:
    values = np.zeros(size[::-1])
    values[:, : round(white * size[0])] = 255
    return grey(path, values)


def by_name(folder: Path, **options) -> dict[str, Mask | None]:
    return {sample.image_path.name: sample.mask for sample in find_samples(folder, **options).train}


def test_masks_belong_to_images_whatever_the_case_and_the_form_of_their_names(tmp_path):
    image(tmp_path / "1_a/Käse 你好.JPG")
    image(tmp_path / "1_a/b.png")
    path = mask(tmp_path / "1_a/Masks/ka\u0308se 你好.PNG")
    found = find_samples(tmp_path)
    assert [sample.mask and sample.mask.path for sample in found.train] == [path, None] or [
        sample.mask and sample.mask.path for sample in found.train
    ] == [None, path]
    assert found.warnings == []
    (of_mask,) = [sample.mask for sample in found.train if sample.mask]
    assert of_mask.share == pytest.approx(0.5)
    assert not of_mask.is_alpha
    assert by_name(tmp_path, masked_loss=False) == {"b.png": None, "Käse 你好.JPG": None}


def test_a_mask_beside_its_image_in_onetrainers_way_is_its_mask(tmp_path):
    for name in ("photo0.jpg", "photo1.jpg"):
        image(tmp_path / "1_a" / name)
    path = mask(tmp_path / "1_a/Photo0-masklabel.png", white=0.25)
    found = find_samples(tmp_path)
    assert [(one.image_path.name, one.mask and one.mask.path) for one in found.train] == [
        ("photo0.jpg", path), ("photo1.jpg", None)]  # fmt: skip
    assert found.train[0].mask.share == pytest.approx(0.25)
    assert found.warnings == []
    assert by_name(tmp_path, masked_loss=False) == {"photo0.jpg": None, "photo1.jpg": None}
    assert by_name(tmp_path, masked_loss=True)["photo0.jpg"]


def test_of_two_masks_that_in_the_folder_of_masks_counts_and_it_is_said(tmp_path):
    image(tmp_path / "1_a/a.jpg")
    mask(tmp_path / "1_a/a-masklabel.png", white=1)
    path = mask(tmp_path / "1_a/masks/a.png")
    found = find_samples(tmp_path)
    assert found.train[0].mask.path == path
    assert "1 image has a mask in masks/, too, which is used instead of a-masklabel.png" in found.warnings[0]


@pytest.mark.parametrize("place", ["masks", "."])
def test_a_mask_of_another_shape_is_told_wherever_it_lies(tmp_path, place):
    image(tmp_path / "1_a/a.jpg")
    mask(tmp_path / "1_a" / place / ("a.png" if place == "masks" else "a-masklabel.png"), (40, 40))
    with pytest.raises(UserError, match=r"1 mask is of another shape than their image: a.*\(40x40, a.jpg: 40x30\)"):
        find_samples(tmp_path)


def test_a_mask_is_for_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image(tmp_path / "1_a/phone.jpg", (40, 30), exif=exif)
    mask(tmp_path / "1_a/masks/phone.png", (15, 20))
    assert by_name(tmp_path)["phone.jpg"].share == pytest.approx(0.5, abs=0.04)
    mask(tmp_path / "1_a/masks/phone.png", (40, 30))
    with pytest.raises(UserError) as error:
        find_samples(tmp_path)
    (problem,) = error.value.problems
    assert "1 mask is of another shape than their image: phone.png (40x30, phone.jpg: 30x40)" in problem
    assert "Make them again" in problem


@pytest.mark.parametrize("size", [(1000, 667), (501, 333), (250, 167), (90, 60)])
def test_a_mask_may_be_a_pixel_off_by_rounding(tmp_path, size):
    image(tmp_path / "1_a/a.png", (1000, 667))
    mask(tmp_path / "1_a/masks/a.png", size)
    assert by_name(tmp_path)["a.png"]


def test_a_broken_mask_stops_the_run_by_name(tmp_path):
    for name in "ab":
        image(tmp_path / f"1_a/{name}.png")
    data = mask(tmp_path / "1_a/masks/a.png").read_bytes()
    (tmp_path / "1_a/masks/a.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "1_a/masks/b.png").write_bytes(b"")
    with pytest.raises(UserError) as error:
        find_samples(tmp_path)
    (problem,) = error.value.problems
    assert "2 masks cannot be read: a.png (" in problem
    assert "b.png (the file is empty" in problem


def test_masks_of_no_image_are_told_with_their_right_name(tmp_path):
    image(tmp_path / "1_a/a.jpg")
    mask(tmp_path / "1_a/masks/a.jpg.png")
    mask(tmp_path / "1_a/masks/gone.png")
    (tmp_path / "1_a/masks/notes.txt").write_text("mine")
    (line,) = find_samples(tmp_path).warnings
    assert "2 masks have no matching image: a.jpg.png, gone.png" in line
    assert line.endswith("such as a.png instead of a.jpg.png")


def test_a_black_mask_is_told_by_name(tmp_path):
    image(tmp_path / "1_a/a.jpg")
    mask(tmp_path / "1_a/masks/a.png", white=0)
    (line,) = find_samples(tmp_path).warnings
    assert "1 image teaches nothing: completely black mask: a.jpg" in line


def test_a_folder_of_masks_at_the_wrong_place_is_told(tmp_path):
    image(tmp_path / "1_a/a.jpg")
    mask(tmp_path / "masks/a.png")
    (line,) = find_samples(tmp_path).warnings
    assert f"masks belong beside their images, in {tmp_path / '[repeats]_[concept]' / 'masks'}. Move them there" in line


def test_masks_that_are_insisted_on_must_be_there(tmp_path):
    image(tmp_path / "1_a/a.jpg")
    with pytest.raises(UserError) as error:
        find_samples(tmp_path, masked_loss=True)
    (problem,) = error.value.problems
    assert f"For {tmp_path / '1_a/a.jpg'} it would be {tmp_path / '1_a/masks/a.png'}." in problem
    mask(tmp_path / "1_a/masks/a.png")
    assert by_name(tmp_path, masked_loss=True)["a.jpg"]


def test_transparency_is_a_mask_where_it_is_asked_for(tmp_path):
    image(tmp_path / "1_a/opaque.png")
    half = Image.open(image(tmp_path / "1_a/half.png"))
    half.putalpha(Image.fromarray(np.repeat([[0, 255]], 20, 1).repeat(30, 0).astype(np.uint8)))
    half.save(tmp_path / "1_a/half.png")
    assert by_name(tmp_path) == {"half.png": None, "opaque.png": None}
    assert by_name(tmp_path, alpha_mask=True, masked_loss=True) == {
        "half.png": Mask(None, True, 0.5),
        "opaque.png": None,
    }
    mask(tmp_path / "1_a/masks/half.png", white=0.25)
    assert by_name(tmp_path, alpha_mask=True)["half.png"].share == pytest.approx(0.25)
    (tmp_path / "1_a/half.png").unlink()
    (tmp_path / "1_a/masks/half.png").unlink()
    assert find_samples(tmp_path, alpha_mask=True).warnings == [
        "alpha_mask = True has no effect: no image has transparent parts"
    ]


def test_the_next_run_reads_only_masks_that_changed(tmp_path, monkeypatch):
    read = []
    really = decoding.raw
    monkeypatch.setattr(decoding, "raw", lambda path, *area: read.append(path.name) or really(path, *area))
    monkeypatch.setattr("library.data.file_index.SETTLED_SECONDS", -1.0)
    for name in "ab":
        image(tmp_path / f"set/1_a/{name}.png")
        mask(tmp_path / f"set/1_a/masks/{name}.png")
    first = by_name(tmp_path / "set", memory=tmp_path / "memory")
    assert sorted(read) == ["a.png", "b.png"]
    read.clear()
    assert by_name(tmp_path / "set", memory=tmp_path / "memory") == first
    assert read == []
    mask(tmp_path / "set/1_a/masks/b.png", white=0.75)
    changed = by_name(tmp_path / "set", memory=tmp_path / "memory")
    assert read == ["b.png"]
    assert changed["a.png"] == first["a.png"]
    assert changed["b.png"].share == pytest.approx(0.75)
    assert changed["b.png"].digest != first["b.png"].digest


def test_messages_are_told_in_chinese_too(tmp_path):
    set_language("zh")
    image(tmp_path / "1_a/a.jpg")
    mask(tmp_path / "1_a/masks/a.png", white=0)
    assert "蒙版全黑" in find_samples(tmp_path).warnings[0]
    (tmp_path / "1_a/masks/a.png").unlink()
    with pytest.raises(UserError, match="没有一张图片有蒙版"):
        find_samples(tmp_path, masked_loss=True)
