"""A cache that cannot be stale, whatever happens to its files."""

import os

import pytest
import torch
from PIL import Image

from library.config import Config
from library.contracts import Conditioning, Fit, Sample
from library.data.cache import BadLatents, LatentCache, TextCache, cache_folder, fingerprint
from library.messages import UserError

FIT = Fit((16, 8), (16, 10), (0, 1))


def sample(folder, name="a.png", colour=(10, 200, 90)):
    path = folder / name
    picture = Image.new("RGB", (32, 20), colour)
    picture.paste((0, 0, 0), (0, 0, 7, 7))  # so that mirrored is another picture
    picture.save(path)
    return Sample(path, "", 32, 20, "1_a", 1, False)


class Encoder:
    """Means of 8x8 squares: a VAE that can be reckoned in the head. Notes what it was asked."""

    def __init__(self):
        self.batches = []

    def __call__(self, pixels):
        self.batches.append(tuple(pixels.shape))
        return torch.nn.functional.avg_pool2d(pixels, 8)

    @property
    def count(self):
        return sum(shape[0] for shape in self.batches)


@pytest.fixture(params=["disk", "memory"])
def place(request, tmp_path):
    return tmp_path / "cache" if request.param == "disk" else None


def test_latents_come_back_as_they_were_made(tmp_path, place):
    cache, encoder, one = LatentCache(place, "vae"), Encoder(), sample(tmp_path)
    filled = cache.fill([(one, FIT, False), (one, FIT, True)], encoder)
    assert (filled.made, filled.reused) == (2, 0)
    plain, mirrored = cache.get(one, FIT, False), cache.get(one, FIT, True)
    assert plain.shape == (3, 1, 2)
    assert plain.dtype == torch.float32
    torch.testing.assert_close(mirrored, plain.flip(-1), atol=1e-3, rtol=0)
    assert not torch.equal(mirrored, plain)


def test_disk_and_memory_give_the_same_bits(tmp_path):
    one, got = sample(tmp_path), []
    for place in (tmp_path / "cache", None):
        cache = LatentCache(place, "vae")
        cache.fill([(one, FIT, False)], Encoder())
        got.append(cache.get(one, FIT))
    assert torch.equal(*got)


def refill(place, one, *, fingerprint="vae", fit=FIT, flip=False):
    """What a next run finds: (made, repaired, latents)."""
    cache = LatentCache(place, fingerprint)
    filled = cache.fill([(one, fit, flip)], Encoder())
    return filled.made, filled.repaired, cache.get(one, fit, flip)


def test_the_next_run_encodes_nothing_even_if_the_picture_moved(tmp_path):
    one = sample(tmp_path)
    place = tmp_path / "cache"
    assert refill(place, one)[0] == 1
    assert refill(place, one)[0] == 0
    os.utime(one.image_path, (1, 1))
    assert refill(place, one)[0] == 0
    assert refill(place, sample(tmp_path, "renamed.png"))[0] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "another vae"},
        {"fit": Fit((8, 8), (16, 10), (0, 1))},
        {"fit": Fit((16, 8), (17, 10), (0, 1))},
        {"fit": Fit((16, 8), (16, 10), (0, 2))},
        {"flip": True},
    ],
)
def test_whatever_latents_follow_from_makes_other_latents(tmp_path, change):
    one = sample(tmp_path)
    refill(tmp_path / "cache", one)
    assert refill(tmp_path / "cache", one, **change)[0] == 1


def test_a_changed_picture_never_gets_its_old_latents_even_with_the_old_date(tmp_path):
    one = sample(tmp_path)
    stat = one.image_path.stat()
    _, _, old = refill(tmp_path / "cache", one)
    sample(tmp_path, colour=(11, 201, 91))
    os.utime(one.image_path, (stat.st_atime, stat.st_mtime))
    made, _, new = refill(tmp_path / "cache", one)
    assert made == 1
    assert not torch.equal(old, new)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped bit"])
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    one = sample(tmp_path)
    _, _, right = refill(tmp_path / "cache", one)
    (file,) = (tmp_path / "cache").rglob("*.cache")
    data = bytearray(file.read_bytes())
    data[-6] ^= 1
    file.write_bytes({"cut": data[:-9], "empty": b"", "flipped bit": data}[damage])
    made, repaired, latents = refill(tmp_path / "cache", one)
    assert (made, repaired) == (1, 1)
    assert torch.equal(latents, right)


def test_an_interrupted_run_leaves_nothing_half_written(tmp_path, monkeypatch):
    one, two = sample(tmp_path), sample(tmp_path, "b.png", (1, 2, 3))
    place, replace, calls = tmp_path / "cache", os.replace, []

    def stop_at_the_second(*paths):
        calls.append(paths)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(os, "replace", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        LatentCache(place, "vae").fill([(one, FIT, False), (two, FIT, False)], Encoder())
    monkeypatch.undo()
    filled = LatentCache(place, "vae").fill([(one, FIT, False), (two, FIT, False)], Encoder())
    assert (filled.made, filled.reused, filled.repaired) == (1, 1, 0)


def test_batches_share_a_bucket_and_progress_counts_what_is_missing(tmp_path, place):
    wide = [sample(tmp_path, f"{index}.png", (index, 0, 0)) for index in range(3)]
    tall_fit = Fit((8, 16), (26, 16), (9, 0))
    wanted = [(one, fit, False) for one in wide for fit in (FIT, tall_fit)]
    cache, encoder, told = LatentCache(place, "vae"), Encoder(), []
    cache.fill(wanted, encoder, batch_size=2, thread_count=2, progress=lambda *numbers: told.append(numbers))
    assert encoder.batches == [(2, 3, 16, 8), (1, 3, 16, 8), (2, 3, 8, 16), (1, 3, 8, 16)]
    assert told == [(2, 6), (3, 6), (5, 6), (6, 6)]
    cache.fill(wanted, encoder, progress=lambda *numbers: told.append(numbers))
    assert len(told) == 4


def test_threads_change_nothing(tmp_path):
    pictures = [sample(tmp_path, f"{index}.png", (index, 5 * index, 9)) for index in range(9)]
    got = []
    for thread_count in (0, 3):
        cache = LatentCache(None, "vae")
        cache.fill([(one, FIT, False) for one in pictures], Encoder(), batch_size=4, thread_count=thread_count)
        got.append(torch.stack([cache.get(one, FIT) for one in pictures]))
    assert torch.equal(*got)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_latents_that_are_not_finite_name_their_picture_and_are_not_kept(tmp_path, value):
    good, bad = sample(tmp_path, "good.png", (0, 0, 0)), sample(tmp_path, "bad.png", (255, 0, 0))

    def broken_vae(pixels):
        return torch.where(pixels[:, :1, :8, :8] > 0.9, value, 0.5)

    place = tmp_path / "cache"
    with pytest.raises(BadLatents) as error:
        LatentCache(place, "vae").fill([(good, FIT, False), (bad, FIT, False)], broken_vae, batch_size=2)
    assert "bad.png" in str(error.value)
    assert "good.png" not in str(error.value)
    assert not list(place.rglob("*.cache"))


def test_a_file_that_vanishes_during_the_run_is_told(tmp_path):
    one, cache = sample(tmp_path), LatentCache(tmp_path / "cache", "vae")
    cache.fill([(one, FIT, False)], Encoder())
    for file in (tmp_path / "cache").rglob("*.cache"):
        file.unlink()
    with pytest.raises(UserError, match=r"a\.png vanished"):
        cache.get(one, FIT)


def test_a_full_disk_is_told_with_what_to_do(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"No space left on device.*cache_latents_to_disk = False"):
        LatentCache(tmp_path / "cache", "vae").fill([(sample(tmp_path), FIT, False)], Encoder())


# ---- where it lies ----


def test_the_usual_place_and_the_one_instead(tmp_path):
    train, output = tmp_path / "train", tmp_path / "output"
    train.mkdir()
    config = Config(train_data_dir=str(train), output_dir=str(output))
    assert cache_folder(config) == (train / ".cache", None)
    assert list((train / ".cache").iterdir()) == []
    (train / ".cache").rmdir()
    (train / ".cache").write_text("a file is in the way")  # as a read-only folder would be
    folder, line = cache_folder(config)
    assert folder == output / ".cache"
    assert "cannot be written, caching in" in line


def test_ones_own_cache_dir_is_used_or_refused(tmp_path):
    assert cache_folder(Config(cache_dir=str(tmp_path / "here"))) == (tmp_path / "here", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cache_dir = .*file cannot be written"):
        cache_folder(Config(cache_dir=str(tmp_path / "file")))


def test_without_disk_there_is_no_folder():
    assert cache_folder(Config(cache_latents_to_disk=False)) == (None, None)


# ---- captions ----


class TextEncoder:
    def __init__(self, pooled=True):
        self.seen, self.pooled = [], pooled

    def __call__(self, captions, sizes):
        assert sizes.shape == (len(captions), 6)
        self.seen += captions
        states = torch.tensor([[[float(len(caption))] * 4] * 7 for caption in captions])
        return Conditioning(states, states[:, 0] + 1 if self.pooled else None, sizes if self.pooled else None)


def test_captions_are_encoded_once_and_come_with_the_sizes_of_their_use(place):
    cache, encoder = TextCache(place, "te"), TextEncoder()
    cache.fill(["a", "bb", "a", ""], encoder, batch_size=2)
    assert encoder.seen == ["a", "bb", ""]
    sizes = torch.arange(12.0).view(2, 6)
    got = cache.get(["bb", "a"], sizes)
    assert got.states.shape == (2, 7, 4)
    assert got.states[:, 0, 0].tolist() == [2, 1]
    assert got.pooled[:, 0].tolist() == [3, 2]
    assert got.sizes is sizes


def test_text_encoders_without_pooled_output_have_no_sizes(place):
    cache = TextCache(place, "te")
    cache.fill(["a"], TextEncoder(pooled=False))
    got = cache.get(["a"], torch.zeros(1, 6))
    assert got.pooled is None
    assert got.sizes is None


def test_another_text_encoder_or_caption_is_encoded_anew(tmp_path):
    made = [
        TextCache(tmp_path, fingerprint).fill(captions, TextEncoder()).made
        for fingerprint, captions in (("te", ["a"]), ("te", ["a"]), ("clip_skip 2", ["a"]), ("te", ["A"]))
    ]
    assert made == [1, 0, 1, 1]


def test_states_that_are_not_finite_name_their_caption(place):
    def broken(captions, sizes):
        return Conditioning(torch.tensor([[[float("nan")]]]))

    with pytest.raises(UserError, match='NaN or infinity for "red hair"'):
        TextCache(place, "te").fill(["red hair"], broken)


def test_a_fingerprint_changes_with_weights_dtype_and_settings():
    layer = torch.nn.Linear(3, 2)
    before = fingerprint(layer)
    assert fingerprint(layer) == before
    assert fingerprint(layer, settings=[2]) != before
    assert fingerprint(torch.nn.Linear(3, 2).bfloat16()) != before
    with torch.no_grad():
        layer.bias[1] += 1e-6
    assert fingerprint(layer) != before
