"""Cleaning raw images: the same is found, borders are cut and subjects never, poor ones are known, sizes fit."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from library.images import borders, duplicates, manifest, quality, regions_file, resizing
from library.messages import UserError


def textured(seed, width=480, height=360):
    """An image with something at every scale, as photos have it."""
    rng = np.random.default_rng(seed)
    layers = []
    for cells, strength in ((4, 90), (16, 45), (64, 22), (240, 11)):
        grid = rng.uniform(-strength, strength, (cells, cells, 3)).astype(np.float32)
        layers.append(
            np.stack([np.asarray(Image.fromarray(grid[..., c]).resize((width, height), 3)) for c in range(3)], -1)
        )
    return Image.fromarray((128 + sum(layers)).clip(0, 255).astype(np.uint8))


def photographed(seed, blur=0.0, width=480, height=360):
    """Something at every scale down to the pixel, as a camera gives it, or softer."""
    grain = np.random.default_rng(seed).normal(0, 9, (height, width, 1))
    image = Image.fromarray((np.asarray(textured(seed, width, height)) + grain).clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(blur))


def as_jpeg(image, quality=75):
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")


def figure(width=400, height=400, ground="white", ink="navy"):
    """A drawing on plain ground: a round head, and legs that taper."""
    image = Image.new("RGB", (width, height), ground)
    pen = ImageDraw.Draw(image)
    pen.ellipse((width * 0.4, height * 0.35, width * 0.6, height * 0.55), fill=ink)
    pen.polygon([(width * 0.45, height * 0.5), (width * 0.55, height * 0.5), (width * 0.5, height * 0.75)], fill=ink)
    return image


# ---- duplicates ----


def looks_of(*images):
    return duplicates.Fingerprints([duplicates.fingerprint(np.asarray(image)) for image in images])


def test_copies_at_other_sizes_and_qualities_are_one_group_and_others_are_not():
    first, second = textured(1), textured(2)
    copies = [first, as_jpeg(first.resize((240, 180)), 40), first.resize((960, 720)), second, as_jpeg(second, 30)]
    others = [textured(seed) for seed in range(10, 40)]
    assert duplicates.groups(looks_of(*copies, *others), 6) == [[0, 1, 2], [3, 4]]


def test_the_same_drawing_in_another_colour_is_another_image():
    """The bits are the same, as both are as dark: only the colours tell them apart."""
    red, blue = figure(ink=(200, 0, 0)), figure(ink=(0, 66, 180))
    looks = looks_of(red, blue)
    assert looks.bits_between(0, 1) <= 6
    assert duplicates.groups(looks, 6) == []


def test_a_mirrored_copy_is_told_but_is_no_duplicate():
    image = textured(1)
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    symmetric = figure()
    looks = looks_of(image, textured(2), as_jpeg(mirrored), symmetric, symmetric)
    assert duplicates.groups(looks, 6) == [[3, 4]]
    assert duplicates.mirrored_pairs(looks, 6) == [(0, 2)]


def test_groups_are_those_of_a_plain_search():
    """Against a breadth-first search over every pair, on bits that form chains."""
    rng = np.random.default_rng(0)
    bits = [int(value) for value in rng.integers(0, 2**63, 60)]
    for start in range(0, 60, 3):
        bits.append(bits[start] ^ 0b1111)
        bits.append(bits[start] ^ 0b11110000 ^ 0b1111)  # near the one before, not the first
    looks = duplicates.Fingerprints([duplicates.Fingerprint(value, value, bytes(192)) for value in bits])
    for most_bits in (0, 4, 8):
        near = [[(one ^ other).bit_count() <= most_bits for other in bits] for one in bits]
        expected, seen = [], set()
        for start in range(len(bits)):
            group, waiting = set(), [start]
            while waiting:
                number = waiting.pop()
                if number not in group:
                    group.add(number)
                    waiting += [other for other in range(len(bits)) if near[number][other]]
            if len(group) > 1 and start not in seen:
                expected.append(sorted(group))
            seen |= group
        assert duplicates.groups(looks, most_bits) == expected


def test_of_a_chain_all_stay_that_have_no_copy_among_those_that_stay():
    looks = duplicates.Fingerprints([duplicates.Fingerprint((1 << 4 * step) - 1, 0, bytes(192)) for step in range(5)])
    assert duplicates.groups(looks, 4) == [[0, 1, 2, 3, 4]]
    assert duplicates.kept(looks, [2, 0, 1, 3, 4], 4) == [2, 0, 4]


def test_ten_thousand_images_are_compared_within_seconds():
    import time

    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**63, 10_000).tolist()
    bits[5000:5100] = bits[:100]
    looks = duplicates.Fingerprints([duplicates.Fingerprint(value, value, bytes(192)) for value in bits])
    start = time.process_time()
    assert len(duplicates.groups(looks, 6)) == 100
    assert len(duplicates.candidates(looks, 6)[0]) <= duplicates.MOST_PAIRS
    assert time.process_time() - start < 20  # 1 to 2; a Python loop over all pairs would take a minute


def details_of(image):
    return duplicates.details(np.asarray(image.convert("RGB")))


def with_text(image, at, text="COPYRIGHT", opacity=255, size=28):
    layer = Image.new("RGBA", image.size)
    ImageDraw.Draw(layer).text(at, text, fill=(255, 255, 255, opacity), font=ImageFont.load_default(size))
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


COPIES = {
    "cut on all sides": lambda image: image.crop((48, 36, 432, 324)),
    "cut on one side": lambda image: image.crop((48, 0, 480, 360)),
    "watermark": lambda image: with_text(image, (250, 320)),
    "banner": lambda image: ImageDraw.Draw(image).rectangle((0, 325, 480, 360), fill="black") or image,
    "lightened": lambda image: image.point(lambda value: min(255, value * 1.12)),
    "cut and saved": lambda image: as_jpeg(image.crop((30, 20, 480, 360)), 60),
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_that_was_cut_or_bears_a_watermark_is_found_in_detail(copy):
    image = photographed(1, blur=0.5)
    copied = COPIES[copy](image.copy())
    assert duplicates.show_the_same(details_of(image), details_of(copied))
    assert duplicates.show_the_same(details_of(copied), details_of(image))
    assert not duplicates.show_the_same(details_of(photographed(2, blur=0.5)), details_of(copied))


def test_a_close_up_another_hair_colour_or_another_middle_is_another_image():
    image = photographed(1, blur=0.5)
    close_up = image.crop((120, 90, 300, 225))
    recoloured = image.copy()
    hair = image.crop((100, 20, 220, 110))
    recoloured.paste(Image.merge("RGB", [hair.split()[at] for at in (2, 0, 1)]), (100, 20))
    changed = image.copy()
    changed.paste(photographed(7).crop((0, 0, 130, 130)), (170, 110))
    for other in (close_up, recoloured, changed, image.rotate(40)):
        assert not duplicates.show_the_same(details_of(image), details_of(other))
    assert not duplicates.show_the_same(*(details_of(figure(ink=ink)) for ink in ((200, 0, 0), (0, 66, 180))))


def test_pairs_found_in_detail_join_groups_and_what_is_like_the_best_goes():
    looks = looks_of(textured(1), textured(2), textured(3), textured(2))
    assert duplicates.groups(looks, 6, [(0, 1)]) == [[0, 1, 3]]
    assert duplicates.kept(looks, [0, 1, 3], 6, [(0, 1)]) == [0, 3]
    assert duplicates.kept(looks, [1, 0, 3], 6, [(0, 1)]) == [1]


def test_the_nearest_pairs_are_compared_in_detail_and_no_more_than_there_is_time_for(monkeypatch):
    bits = [0, 0b1, (1 << 12) - 1, (1 << 20) - 1, (1 << 60) - 1]
    looks = duplicates.Fingerprints([duplicates.Fingerprint(value, value, bytes(192)) for value in bits])
    nearest = [(2, 3), (1, 2), (0, 2), (1, 3), (0, 3)]  # 8, 11, 12, 19 and 20 bits; 0 and 1 are the same anyway
    assert duplicates.candidates(looks, 6) == (nearest, 0)
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 3)
    assert duplicates.candidates(looks, 6) == ([(2, 3), (1, 2)], 3)


# ---- quality ----


@pytest.mark.parametrize("sigma", [1.5, 3.0, 6.0])
def test_blur_is_measured_in_pixels_whatever_the_contrast(sigma):
    for ink in ("navy", (200, 200, 200)):
        blurred = figure(ink=ink).filter(ImageFilter.GaussianBlur(sigma))
        measured = quality.blur(quality.grey_of(np.asarray(blurred)))
        assert measured == pytest.approx((sigma**2 + 0.8**2) ** 0.5, rel=0.15)
    assert quality.blur(quality.grey_of(np.asarray(figure()))) < 1.0


def test_noise_is_measured_in_grey_levels():
    rng = np.random.default_rng(0)
    flat = np.full((300, 300), 128.0)
    for sigma in (1, 5, 20):
        noisy = (flat + rng.normal(0, sigma, flat.shape)).astype(np.float32)
        assert quality.noise(noisy) == pytest.approx(sigma, rel=0.1)
    assert quality.noise(quality.grey_of(np.asarray(figure()))) < 0.5


def test_a_plain_image_has_no_edges():
    assert quality.blur(np.full((64, 64), 200, np.float32)) == float("inf")


@pytest.mark.parametrize("factor", [1.5, 2.5])
@pytest.mark.parametrize("blur", [0.0, 0.7])
@pytest.mark.parametrize("saved", [60, 95])
def test_an_enlarged_copy_is_told_from_a_genuine_large_one_however_soft(saved, blur, factor):
    """A soft photo is steep by itself: only the other copy tells whether something was lost on the way."""
    original = photographed(3, blur)
    small = as_jpeg(original.resize((round(480 / factor), round(360 / factor)), Image.Resampling.LANCZOS), saved)
    assert not quality.was_enlarged(np.asarray(original), np.asarray(small))
    for kernel in (Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR):
        enlarged = as_jpeg(small.resize(original.size, kernel), saved)
        assert quality.was_enlarged(np.asarray(enlarged), np.asarray(small))


# ---- borders ----


@pytest.mark.slow("hundreds of bordered pictures")
@pytest.mark.parametrize("colour", ["black", "white", (51, 102, 153), (8, 8, 8)])
@pytest.mark.parametrize("saved", [30, 75, 95])
@pytest.mark.parametrize("thickness", [(0, 60), (43, 43), (60, 0), (0, 11)], ids=str)
def test_borders_are_cut_though_a_jpeg_has_smeared_them(colour, saved, thickness):
    """Nothing of the border may stay, and of the image at most a few lines may go."""
    across, down = thickness
    inner = textured(1)
    framed = Image.new("RGB", (inner.width + 2 * across, inner.height + 2 * down), colour)
    framed.paste(inner, (across, down))
    trim = borders.find_borders(np.asarray(as_jpeg(framed, saved)))
    expected = (across, down, across + inner.width, down + inner.height)
    inwards = np.array(trim) - expected
    inwards[2:] *= -1
    assert inwards.min() >= -1, trim
    assert inwards.max() <= 10, trim


def test_one_bar_is_cut_and_frames_within_frames_too():
    inner = textured(1)
    barred = Image.new("RGB", (inner.width, inner.height + 50), "black")
    barred.paste(inner, (0, 0))
    assert borders.find_borders(np.asarray(barred)) == (0, 0, inner.width, inner.height)
    framed = Image.new("RGB", (inner.width + 40, inner.height + 40), "white")
    framed.paste(inner, (20, 20))
    boxed = Image.new("RGB", (framed.width + 100, framed.height), "black")
    boxed.paste(framed, (50, 0))
    assert borders.find_borders(np.asarray(boxed)) == (70, 20, 70 + inner.width, 20 + inner.height)


@pytest.mark.parametrize("ground", ["white", (250, 205, 220), "black"])
@pytest.mark.parametrize("saved", [None, 60])
def test_a_subject_on_plain_ground_keeps_a_margin(ground, saved):
    drawing = figure(ground=ground, ink=(60, 120, 60))
    image = as_jpeg(drawing, saved) if saved else drawing
    left, top, right, bottom = borders.find_borders(np.asarray(image))
    subject = (160, 140, 241, 301)
    margin = borders.MARGIN * (subject[3] - subject[1])
    assert 0 < left <= subject[0] - margin * 0.8
    assert 0 < top <= subject[1] - margin * 0.8
    assert 400 > right >= subject[2] + margin * 0.8
    assert 400 > bottom >= subject[3] + margin * 0.8


def test_an_image_is_whole_where_its_plain_sides_are_no_borders():
    sky = textured(1)
    ImageDraw.Draw(sky).rectangle((0, 0, 480, 120), fill=(180, 210, 255))
    hills = [(0, 121), *((x, 60 + 50 * np.sin(x / 60)) for x in range(0, 481, 10)), (480, 121)]
    ImageDraw.Draw(sky).polygon(hills, fill=(60, 90, 40))
    stripes = Image.new("RGB", (400, 400), "white")
    for row in range(0, 400, 80):
        ImageDraw.Draw(stripes).rectangle((0, row, 400, row + 39), fill=(200, 60, 60))
    floor = Image.new("RGB", (400, 400), (180, 210, 255))
    ImageDraw.Draw(floor).rectangle((0, 250, 400, 400), fill=(60, 140, 60))
    cut_figure = figure(300, 300).crop((90, 90, 210, 225))  # head and feet near the edges already
    for image in (textured(5), sky, stripes, floor, cut_figure, Image.new("RGB", (90, 60), "white")):
        assert borders.find_borders(np.asarray(image)) == (0, 0, *image.size)


# ---- resizing ----


@pytest.mark.parametrize("size", [(4000, 3000), (3000, 400), (100, 90), (600, 500), (511, 512), (768, 768)], ids=str)
def test_sizes_lie_in_the_training_range_and_stay_there(size):
    width, height = resizing.wanted_size(*size, 512)
    assert 512**2 <= width * height <= (1.5 * 512) ** 2
    assert width / height == pytest.approx(size[0] / size[1], rel=0.02)
    assert resizing.wanted_size(width, height, 512) == (width, height)
    if 512**2 <= size[0] * size[1] <= (1.5 * 512) ** 2:
        assert (width, height) == size


def test_hidden_colours_do_not_bleed_when_a_cut_out_is_resized():
    image = np.zeros((200, 200, 4), np.uint8)
    image[..., 0] = 255  # hidden red
    image[50:150, 50:150] = (0, 0, 255, 255)
    small = resizing.resize(image, (70, 70))
    assert small[small[..., 3] > 8][:, 0].max() < 8


def test_tiles_are_the_whole(monkeypatch):
    """A model that looks 3 pixels around gives the same in tiles as in one go."""
    import cv2

    monkeypatch.setattr(resizing, "TILE", 40)
    image = np.asarray(textured(1, 130, 97))

    def enlarge(tile):
        return np.repeat(np.repeat(cv2.blur(tile, (7, 7)), 2, axis=0), 2, axis=1)

    assert np.array_equal(resizing.by_tiles(image, enlarge, 2), enlarge(image))


def test_denoising_removes_noise_and_little_else():
    clean = np.asarray(figure(ground="gray", ink=(60, 120, 60)))
    noisy = (clean + np.random.default_rng(0).normal(0, 8, clean.shape)).clip(0, 255).astype(np.uint8)
    better = resizing.denoise(noisy, 8)
    assert np.abs(better.astype(int) - clean).mean() < 0.5 * np.abs(noisy.astype(int) - clean).mean()


def test_a_file_that_is_no_model_is_told(tmp_path):
    (tmp_path / "4x-thing.pth").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"4x-thing\.pth"):
        resizing.open_model(tmp_path / "4x-thing.pth", "cpu")


# ---- the regions file ----

SIZES = {"照片 1.jpg": (200, 100), "sub/a.png": (50, 50), "other/a.png": (80, 80), "b.c.png": (10, 10)}


def read(text):
    return regions_file.read_regions(text, list(SIZES), SIZES.get, "regions.txt")


def test_regions_are_read_as_people_write_them():
    text = """
# a remark
照片 1.jpg: 10, 20, 30, 40
照片 1： 50%，50％、25%，25%
sub\\a.png: 5 5 10 10
B.C.png: -5, 0, 8, 100
"""
    found = {name: [tuple(region[:4]) for region in regions] for name, regions in read("\ufeff" + text).items()}
    assert found == {
        "照片 1.jpg": [(10, 20, 30, 40), (100, 50, 50, 25)],
        "sub/a.png": [(5, 5, 10, 10)],
        "b.c.png": [(0, 0, 3, 10)],
    }


def test_a_star_stands_for_many_images():
    assert set(read("*.png: 0, 90%, 100%, 10%")) == {"sub/a.png", "other/a.png", "b.c.png"}
    assert set(read("sub/*: 0, 0, 60, 60")) == {"sub/a.png"}


def test_every_line_that_cannot_be_followed_is_told():
    text = "照片 2.jpg: 1,2,3,4\na.png: 1,2,3,4\n照片 1.jpg: 1,2,3\n照片 1.jpg 1,2,3,4\n"
    text += "照片 1.jpg: 1,2,x,4\n照片 1.jpg: 1,2,0,4\n照片 1.jpg: 300,2,5,4\n*.gif: 1,2,3,4\n"
    with pytest.raises(UserError) as caught:
        read(text)
    problems = caught.value.problems
    assert [problem.split(":")[1] for problem in problems] == [str(line) for line in range(1, 9)]
    expected = ['Did you mean "照片 1.jpg"?', "sub/a.png, other/a.png", "3 numbers instead of 4", "colon", '"x"',
                "above 0", "200 x 100", 'no image matches "*.gif"']  # fmt: skip
    for problem, words in zip(problems, expected, strict=True):
        assert words in problem


# ---- the manifest ----


def test_what_was_made_is_known_again_also_after_a_kill(tmp_path):
    record = manifest.Record("d", "s", "图", {"图.png": manifest.digest_of(b"1")}, {"size": {}})
    with manifest.Manifest(tmp_path) as book:
        book.begin("图.jpg", ["图.png"])
        (tmp_path / "图.png").write_bytes(b"1")
        book.done("图.jpg", record)
        book.remember("q", True)
        book.begin("b.jpg", ["b.png"])
        (tmp_path / "b.png").write_bytes(b"half")
    with open(tmp_path / manifest.FILE, "a", encoding="utf-8") as file:
        file.write('{"raw": "c.jp')  # the line at which it was killed
    again = manifest.Manifest(tmp_path)
    assert again.records == {"图.jpg": record}
    assert again.answers == {"q": True}
    assert again.is_ours("图.jpg", "图.png")
    assert again.is_ours("b.jpg", "b.png")
    (tmp_path / "图.png").write_bytes(b"changed")
    (tmp_path / "x.png").write_bytes(b"")
    assert not again.is_ours("图.jpg", "图.png")
    assert not again.is_ours("图.jpg", "x.png")


def test_a_manifest_that_is_something_else_is_told_and_left(tmp_path):
    (tmp_path / manifest.FILE).write_text("my own notes\nsecond line\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"prepared\.jsonl"):
        manifest.Manifest(tmp_path)
    assert (tmp_path / manifest.FILE).read_text(encoding="utf-8") == "my own notes\nsecond line\n"


def test_a_manifest_does_not_grow_with_every_run(tmp_path):
    record = manifest.Record("d", "s", "a", {}, {})
    for _ in range(6):
        with manifest.Manifest(tmp_path) as book:
            for _ in range(60):
                book.done("a.jpg", record)
    assert len((tmp_path / manifest.FILE).read_text().splitlines()) < 200
    assert manifest.Manifest(tmp_path).records == {"a.jpg": record}
