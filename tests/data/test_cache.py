"""A cache that cannot be stale, whatever happens to its files."""

import os
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from library.contracts import Fit, Sample
from library.data import cache as caches
from library.data import decoding, file_index, shards
from library.data.cache import BadLatents, LatentCache, TextCache, fingerprint
from library.data.file_index import cache_folder
from library.messages import UserError
from library.options.training import Config

FIT = Fit((16, 8), (16, 10), (0, 1))


def sample(folder, name="a.png", colour=(10, 200, 90)):
    path = folder / name
    image = Image.new("RGB", (32, 20), colour)
    image.paste((0, 0, 0), (0, 0, 7, 7))  # so that mirrored is another image
    image.save(path)
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


def test_the_next_run_encodes_nothing_even_if_the_image_moved(tmp_path):
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


def test_a_changed_image_never_gets_its_old_latents_even_with_the_old_date(tmp_path):
    one = sample(tmp_path)
    stat = one.image_path.stat()
    _, _, old = refill(tmp_path / "cache", one)
    sample(tmp_path, colour=(11, 201, 91))
    os.utime(one.image_path, (stat.st_atime, stat.st_mtime))
    made, _, new = refill(tmp_path / "cache", one)
    assert made == 1
    assert not torch.equal(old, new)


def test_an_image_that_changes_while_the_cache_is_filled_is_kept_as_what_it_became(tmp_path, monkeypatch):
    one, really = sample(tmp_path), caches.sha256_of_file

    def change_after(path):
        digest = really(path)
        sample(tmp_path, colour=(99, 0, 0))
        return digest

    with monkeypatch.context() as patched:
        patched.setattr(caches, "sha256_of_file", change_after)
        _, _, changed = refill(tmp_path / "cache", one)
    made, _, again = refill(tmp_path / "cache", one)
    assert made == 0
    assert torch.equal(again, changed)
    sample(tmp_path)  # as it was
    made, _, former = refill(tmp_path / "cache", one)
    assert made == 1
    assert not torch.equal(former, changed)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped bit"])
def test_damaged_latents_are_made_anew(tmp_path, damage):
    one = sample(tmp_path)
    _, _, right = refill(tmp_path / "cache", one)
    (file,) = (tmp_path / "cache" / "latents").glob("*.rows")
    data = bytearray(file.read_bytes())
    data[-6] ^= 1
    file.write_bytes({"cut": data[:-9], "empty": b"", "flipped bit": data}[damage])
    made, repaired, latents = refill(tmp_path / "cache", one)
    assert (made, repaired) == (1, 1)
    assert torch.equal(latents, right)
    assert refill(tmp_path / "cache", one)[:2] == (0, 0)


def test_an_interrupted_run_is_continued_where_it_was(tmp_path):
    images = [sample(tmp_path, f"{index}.png", (index, 0, 0)) for index in range(7)]
    wanted = [(one, FIT, False) for one in images]
    place, encoder = tmp_path / "cache", Encoder()

    def interrupted(pixels):
        if len(encoder.batches) == 2:
            raise KeyboardInterrupt
        return encoder(pixels)

    with pytest.raises(KeyboardInterrupt):
        LatentCache(place, "vae").fill(wanted, interrupted, batch_size=2)
    again, whole = LatentCache(place, "vae"), LatentCache(None, "vae")
    filled = again.fill(wanted, Encoder())
    assert (filled.made, filled.reused, filled.repaired) == (3, 4, 0)
    whole.fill(wanted, Encoder())
    assert torch.equal(again.get_batch(wanted), whole.get_batch(wanted))


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
    images = [sample(tmp_path, f"{index}.png", (index, 5 * index, 9)) for index in range(9)]
    got = []
    for thread_count in (0, 3):
        cache = LatentCache(None, "vae")
        cache.fill([(one, FIT, False) for one in images], Encoder(), batch_size=4, thread_count=thread_count)
        got.append(torch.stack([cache.get(one, FIT) for one in images]))
    assert torch.equal(*got)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_latents_that_are_not_finite_name_their_image_and_are_not_kept(tmp_path, value):
    good, bad = sample(tmp_path, "good.png", (0, 0, 0)), sample(tmp_path, "bad.png", (255, 0, 0))

    def broken_vae(pixels):
        return torch.where(pixels[:, :1, :8, :8] > 0.9, value, 0.5)

    place = tmp_path / "cache"
    with pytest.raises(BadLatents) as error:
        LatentCache(place, "vae").fill([(good, FIT, False), (bad, FIT, False)], broken_vae, batch_size=2)
    assert "bad.png" in str(error.value)
    assert "good.png" not in str(error.value)
    assert refill(place, good)[0] == refill(place, bad)[0] == 1


@pytest.mark.parametrize("damage", ["vanished", "cut", "flipped bit"])
def test_what_happens_to_latents_during_the_run_is_told_and_mended_by_the_next(tmp_path, damage):
    one, two, cache = sample(tmp_path), sample(tmp_path, "b.png", (1, 2, 3)), LatentCache(tmp_path / "cache", "vae")
    cache.fill([(one, FIT, False), (two, FIT, False)], Encoder())
    right = LatentCache(None, "vae")
    right.fill([(two, FIT, False)], Encoder())
    (file,) = (tmp_path / "cache" / "latents").glob("*.rows")
    (index,) = (tmp_path / "cache" / "latents").glob("*.index")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    if damage == "vanished":
        file.unlink()
        index.unlink()
    else:
        file.write_bytes(data[:-1] if damage == "cut" else data)
        with open(index, "r+b") as header:  # as if a bit had fallen over without anybody writing: the dates agree
            header.write(shards._header(file))
        again = LatentCache(tmp_path / "cache", "vae")
        assert again.fill([(two, FIT, False)], Encoder()).made == 0
        with pytest.raises(UserError, match=r"b\.png were deleted"):
            again.get(two, FIT)
    with pytest.raises(UserError, match=r"b\.png were deleted or damaged during the run. Start again"):
        cache.get_batch([(two, FIT, False)])
    made, _, latents = refill(tmp_path / "cache", two)
    assert made == 1
    assert torch.equal(latents, right.get(two, FIT))


def test_a_batch_is_its_latents_in_the_order_asked_for(tmp_path, place):
    wanted = [(sample(tmp_path, f"{index}.png", (index, 0, 0)), FIT, flip) for index in range(3) for flip in (0, 1)]
    cache = LatentCache(place, "vae")
    cache.fill(wanted, Encoder(), batch_size=4)
    uses = [wanted[at] for at in (4, 1, 1, 5)]
    got = cache.get_batch(uses)
    assert got.dtype == torch.float32
    assert torch.equal(got, torch.stack([cache.get(*use) for use in uses]))
    assert not torch.equal(got[0], got[3])


def test_a_full_disk_is_told_with_what_to_do(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "_write", full)
    with pytest.raises(UserError, match=r"No space left on device.*cache_latents_to_disk = False"):
        LatentCache(tmp_path / "cache", "vae").fill([(sample(tmp_path), FIT, False)], Encoder())


# ---- what the images hold, without reading them ----


@pytest.fixture
def read(monkeypatch):
    """Names of the images whose bytes were read to learn what they hold; none of them counts as too young."""
    names, really = [], caches.sha256_of_file
    monkeypatch.setattr(caches, "sha256_of_file", lambda path: names.append(path.name) or really(path))
    monkeypatch.setattr(file_index, "SETTLED_SECONDS", -60)
    return names


def test_the_next_run_reads_no_image_that_it_knows(tmp_path, read):
    one = sample(tmp_path)
    refill(tmp_path / "cache", one)
    assert refill(tmp_path / "cache", one)[0] == 0
    assert read == ["a.png"]


def test_a_touched_image_is_read_and_not_encoded_again(tmp_path, read):
    one = sample(tmp_path)
    refill(tmp_path / "cache", one)
    os.utime(one.image_path, (1, 1))
    assert refill(tmp_path / "cache", one)[0] == 0
    assert refill(tmp_path / "cache", one)[0] == 0
    assert read == ["a.png", "a.png"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no date that tells of every change")
def test_another_content_of_the_same_size_with_the_old_date_is_noticed(tmp_path, read):
    path = tmp_path / "a.bmp"  # every image of a size has as many bytes
    Image.new("RGB", (32, 20), "red").save(path)
    one, before = Sample(path, "", 32, 20, "1_a", 1, False), path.stat()
    _, _, old = refill(tmp_path / "cache", one)
    time.sleep(0.02)  # the clock of a file system ticks every 4 ms or so
    Image.new("RGB", (32, 20), "blue").save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    made, _, new = refill(tmp_path / "cache", one)
    assert made == 1
    assert not torch.equal(old, new)


def test_an_image_written_just_now_is_read_again(tmp_path, read, monkeypatch):
    """It may change once more within the same tick of the clock."""
    monkeypatch.setattr(file_index, "SETTLED_SECONDS", 60)
    one = sample(tmp_path)
    for _ in range(2):
        refill(tmp_path / "cache", one)
    assert read == ["a.png", "a.png"]


def test_what_is_known_of_images_may_be_damaged(tmp_path, read):
    one = sample(tmp_path)
    refill(tmp_path / "cache", one)
    for file in (tmp_path / "cache" / "pictures").glob("*.rows"):
        file.write_bytes(bytes(32))
    assert refill(tmp_path / "cache", one)[0] == 0
    assert read == ["a.png", "a.png"]


def test_a_folder_that_can_only_be_read_serves_what_it_has(tmp_path, read, monkeypatch):
    one, two = sample(tmp_path), sample(tmp_path, "b.png", (1, 2, 3))
    _, _, latents = refill(tmp_path / "cache", one)

    class ReadOnly(shards.FileIO):
        def __init__(self, file, mode="r"):
            if mode != "r":
                raise PermissionError(13, "Permission denied")
            super().__init__(file, mode)

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shards, "FileIO", ReadOnly)
    monkeypatch.setattr(os, "utime", denied)
    made, _, again = refill(tmp_path / "cache", one)
    assert made == 0
    assert torch.equal(again, latents)
    with pytest.raises(UserError, match="the cache cannot be written: .*Permission denied"):
        refill(tmp_path / "cache", two)


# ---- images decoded small ----


def photo(size):
    """Coarse and fine detail, as a photo has."""
    noise = np.random.default_rng(0)
    image = Image.fromarray(noise.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8))
    image = np.asarray(image.resize(size, Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((image + noise.integers(-20, 21, image.shape)).clip(0, 255).astype(np.uint8))


def test_a_photo_decoded_small_differs_by_less_than_a_grey_level(tmp_path, monkeypatch):
    """By 0.53 on average, and nowhere by more than 4 of 255."""
    photo((1600, 1200)).save(tmp_path / "a.jpg", quality=90)
    fit, sizes = Fit((256, 192), (256, 192), (0, 0)), []
    really = decoding._on_white
    monkeypatch.setattr(decoding, "_on_white", lambda image: sizes.append(image.size) or really(image))
    small = decoding.load(tmp_path / "a.jpg", fit).astype(int)
    monkeypatch.setattr(decoding, "SHRINK_AT_MOST_TO", 100.0)  # nothing is 100 times too large: decoded whole
    whole = decoding.load(tmp_path / "a.jpg", fit).astype(int)
    assert sizes == [(800, 600), (1600, 1200)]
    assert 0 < np.abs(small - whole).mean() < 0.6
    assert np.abs(small - whole).max() <= 4


def test_a_photo_decoded_small_is_turned_upright_and_keeps_its_colour_space(tmp_path):
    upright, exif = photo((600, 1600)), Image.Exif()
    exif[0x0112] = 6
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = bytearray(srgb.replace(b"sRGB", b"ours").replace("sRGB".encode("utf-16-be"), "ours".encode("utf-16-be")))
    table = {bytes(srgb[at : at + 4]): at for at in range(132, 132 + 12 * int.from_bytes(srgb[128:132], "big"), 12)}
    red, blue = table[b"rXYZ"] + 4, table[b"bXYZ"] + 4
    swapped[red : red + 4], swapped[blue : blue + 4] = srgb[blue : blue + 4], srgb[red : red + 4]
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "a.jpg", exif=exif, icc_profile=bytes(swapped), quality=95)
    fit = Fit((48, 128), (48, 128), (0, 0))
    got = decoding.load(tmp_path / "a.jpg", fit).astype(int)
    expected = np.asarray(upright.resize((48, 128), Image.Resampling.HAMMING)).astype(int)[..., ::-1]
    assert np.abs(got - expected).mean() < 4


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


def test_a_mistyped_training_folder_does_not_come_into_being(tmp_path):
    config = Config(train_data_dir=str(tmp_path / "trian"), output_dir=str(tmp_path / "output"))
    assert cache_folder(config) == (None, None)
    assert list(tmp_path.iterdir()) == []


# ---- captions ----


NAMES = ("states", "pooled")


class TextEncoder:
    def __init__(self):
        self.seen = []

    def __call__(self, captions):
        self.seen += captions
        states = torch.tensor([[[float(len(caption))] * 4] * 7 for caption in captions])
        return {"states": states, "pooled": states[:, 0] + 1}


def test_captions_are_encoded_once_and_keep_their_names(place):
    cache, encoder = TextCache(place, "te", NAMES), TextEncoder()
    cache.fill(["a", "bb", "a", ""], encoder, batch_size=2)
    assert encoder.seen == ["a", "bb", ""]
    got = cache.get(["bb", "a"])
    assert list(got) == ["states", "pooled"]
    assert got["states"].shape == (2, 7, 4)
    assert got["states"][:, 0, 0].tolist() == [2, 1]
    assert got["pooled"][:, 0].tolist() == [3, 2]


def of_words(captions):
    """As many states and ids as a caption has letters; padded to the longest of those that are encoded together."""
    lengths = torch.tensor([len(caption) for caption in captions])
    states = torch.zeros(len(captions), int(lengths.max()), 3)
    ids = torch.zeros(len(captions), 5, dtype=torch.long)
    for row, caption in enumerate(captions):
        states[row, : len(caption)] = torch.arange(1.0, len(caption) + 1)[:, None]
        ids[row] = 30_000 + len(caption)
    return {"states": states, "states_length": lengths, "token_ids": ids}


def test_captions_of_any_length_come_back_padded_to_the_longest_asked_for(place):
    captions = ["a" * count for count in (3, 70, 64, 65, 1, 200)]
    cache = TextCache(place, "te", ("states", "states_length", "token_ids"))
    cache.fill(captions, of_words, batch_size=4)
    for wanted in (captions, captions[:1], captions[4:0:-1], [captions[0], captions[4]]):
        got, expected = cache.get(wanted), of_words(wanted)
        assert {name: x.dtype for name, x in got.items()} == {name: x.dtype for name, x in expected.items()}
        assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_what_earlier_versions_have_kept_is_found(tmp_path):
    """Their files hold rows of states, and pooled ones, without names: the order tells which is which."""
    cache = TextCache(tmp_path, "te", NAMES)
    cache.fill(["a"], TextEncoder())
    (rows,) = tmp_path.glob("captions/*.rows")
    assert rows.name.split(".")[1] == "7x4+4"
    assert TextCache(tmp_path, "te", NAMES).fill(["a"], TextEncoder()).made == 0


def test_another_text_encoder_or_caption_is_encoded_anew(tmp_path):
    made = [
        TextCache(tmp_path, fingerprint, NAMES).fill(captions, TextEncoder()).made
        for fingerprint, captions in (("te", ["a"]), ("te", ["a"]), ("clip_skip 2", ["a"]), ("te", ["A"]))
    ]
    assert made == [1, 0, 1, 1]


def test_states_that_are_not_finite_name_their_caption(place):
    def broken(captions):
        return {"states": torch.tensor([[[float("nan")]]])}

    with pytest.raises(UserError, match='NaN or infinity for "red hair"'):
        TextCache(place, "te", ("states",)).fill(["red hair"], broken)


def test_a_fingerprint_changes_with_weights_dtype_and_settings():
    layer = torch.nn.Linear(3, 2)
    before = fingerprint(layer)
    assert fingerprint(layer) == before
    assert fingerprint(layer, settings=[2]) != before
    assert fingerprint(torch.nn.Linear(3, 2).bfloat16()) != before
    with torch.no_grad():
        layer.bias[1] += 1e-6
    assert fingerprint(layer) != before
