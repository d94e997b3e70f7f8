"""Images reach the VAE as the user sees them."""

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps, JpegImagePlugin

from library.contracts import Fit
from library.data import decoding
from library.messages import UserError


def whole(width, height):
    return Fit((width, height), (width, height), (0, 0))


def gradient(width, height):
    """Different everywhere and in every direction, so that a turned image cannot pass for an upright one."""
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 120, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_becomes_upright(tmp_path, orientation):
    upright = gradient(48, 32)
    back = {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM}  # fmt: skip
    stored = upright.transpose(back[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    seen = decoding.inspect(tmp_path / "a.jpg")
    assert (seen.width, seen.height) == (48, 32)
    loaded = decoding.load(tmp_path / "a.jpg", whole(48, 32))
    assert np.abs(loaded.astype(int) - np.asarray(upright)).mean() < 3


def test_a_turned_photo_decoded_small_is_the_same_image(tmp_path, monkeypatch):
    """JPEGs are decoded at a fraction of their size; which side is which must not be mixed up."""
    upright = gradient(600, 1600)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", exif=exif, quality=95)
    fit = Fit((32, 64), (32, 85), (0, 10))
    asked, draft = [], JpegImagePlugin.JpegImageFile.draft
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", lambda *given: asked.append(given[2]) or draft(*given))
    expected = upright.resize((32, 85), Image.Resampling.HAMMING).crop((0, 10, 32, 74))
    assert np.abs(decoding.load(tmp_path / "a.jpg", fit).astype(int) - np.asarray(expected)).mean() < 2
    assert asked == [(170, 64)]  # of the image as it lies in the file


@pytest.mark.parametrize("size", [(90, 70), (30, 20)])
def test_resizing_only_what_stays_equals_resizing_all_and_cropping(tmp_path, size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)  # shows any other kernel
    image = Image.fromarray(noise)
    image.save(tmp_path / "a.png")
    shrinks = size[0] > 64
    fit = Fit((48, 48), (64, 50), (9, 1))
    kernel = Image.Resampling.HAMMING if shrinks else Image.Resampling.LANCZOS
    expected = image.resize((64, 50), kernel).crop((9, 1, 57, 49))
    assert np.abs(decoding.load(tmp_path / "a.png", fit).astype(int) - np.asarray(expected)).max() <= 1


def colour(path):
    return decoding.load(path, whole(8, 8))[4, 4].tolist()


def test_transparency_becomes_white_not_the_hidden_colour(tmp_path):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.save(tmp_path / "rgba.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "half.png")
    Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "la.png")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "palette.png", transparency=1)
    palette.save(tmp_path / "opaque.png")
    assert colour(tmp_path / "rgba.png") == [255, 255, 255]
    assert colour(tmp_path / "half.png") == [127, 127, 127]
    assert colour(tmp_path / "la.png") == [255, 255, 255]
    assert colour(tmp_path / "palette.png") == [255, 255, 255]
    assert colour(tmp_path / "opaque.png") == [0, 255, 0]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((8, 8), 32768, dtype=np.uint16)).save(tmp_path / "grey16.png")
    assert colour(tmp_path / "grey16.png") == [128, 128, 128]


def test_grey_black_and_white_and_cmyk(tmp_path):
    Image.new("L", (8, 8), 90).save(tmp_path / "l.png")
    Image.new("1", (8, 8), 1).save(tmp_path / "1.png")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    assert colour(tmp_path / "l.png") == [90, 90, 90]
    assert colour(tmp_path / "1.png") == [255, 255, 255]
    red, green, blue = colour(tmp_path / "cmyk.jpg")
    assert red > 240
    assert green < 15
    assert blue < 15


def test_colours_are_converted_by_the_profile_and_damaged_profiles_ignored(tmp_path):

    image = Image.new("RGB", (8, 8), (200, 100, 50))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(tmp_path / "srgb.png", icc_profile=srgb)
    image.save(tmp_path / "broken.png", icc_profile=b"not a profile")
    assert colour(tmp_path / "srgb.png") == [200, 100, 50]
    assert colour(tmp_path / "broken.png") == [200, 100, 50]
    # the same profile with red and blue primaries exchanged, under another name
    table = {bytes(srgb[at : at + 4]): at for at in range(132, 132 + 12 * int.from_bytes(srgb[128:132], "big"), 12)}
    swapped = bytearray(srgb.replace(b"sRGB", b"ours").replace("sRGB".encode("utf-16-be"), "ours".encode("utf-16-be")))
    red, blue = table[b"rXYZ"] + 4, table[b"bXYZ"] + 4
    swapped[red : red + 4], swapped[blue : blue + 4] = srgb[blue : blue + 4], srgb[red : red + 4]
    image.save(tmp_path / "swapped.png", icc_profile=bytes(swapped))
    assert np.abs(np.array(colour(tmp_path / "swapped.png")) - [50, 100, 200]).max() <= 3


def test_flip_mirrors_after_cropping(tmp_path):
    gradient(20, 10).save(tmp_path / "a.png")
    fit = Fit((8, 8), (20, 10), (3, 1))
    plain = decoding.load(tmp_path / "a.png", fit)
    assert (decoding.load(tmp_path / "a.png", fit, flip=True) == plain[:, ::-1]).all()


def test_a_panorama_is_not_enlarged_as_a_whole(tmp_path):
    """20000x1 covers a bucket of 1024x256 only at 5,120,000 x 256: four gigabytes."""
    Image.new("RGB", (20_000, 1), "red").save(tmp_path / "a.png")
    fit = Fit((1024, 256), (5_120_000, 256), (2_559_488, 0))
    assert decoding.load(tmp_path / "a.png", fit).shape == (256, 1024, 3)


def test_no_change_of_colours_changes_nothing_and_changes_are_what_they_say():
    same = decoding.ColourChange(1, 1, 1, 0).matrix()
    np.testing.assert_allclose(same, np.eye(3, 4), atol=1e-12)
    grey = np.array([100, 100, 100, 1])
    np.testing.assert_allclose(decoding.ColourChange(1, 1, 0.3, 0.4).matrix() @ grey, [100] * 3)
    np.testing.assert_allclose(decoding.ColourChange(1.1, 1, 1, 0).matrix() @ grey, [110] * 3)
    np.testing.assert_allclose(
        decoding.ColourChange(1, 0.5, 1, 0).matrix() @ [27.5, 127.5, 227.5, 1], [77.5, 127.5, 177.5]
    )
    third = decoding.ColourChange(1, 1, 1, 1 / 3).matrix() @ [200, 50, 10, 1]
    np.testing.assert_allclose(third, [10, 200, 50], atol=1e-9)  # a third of a turn: red goes to green


def test_drawn_changes_are_small(tmp_path):
    gradient(32, 32).save(tmp_path / "a.png")
    rng = random.Random(0)
    plain = decoding.load(tmp_path / "a.png", whole(32, 32)).astype(int)
    for _ in range(20):
        changed = decoding.load(tmp_path / "a.png", whole(32, 32), colours=decoding.ColourChange.draw(rng))
        assert 0 < np.abs(changed - plain).mean() < 40


def test_pixels_are_between_minus_one_and_one():
    pixels = decoding.to_pixels([np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 255, np.uint8)])
    assert pixels.shape == (2, 3, 4, 6)
    assert pixels.dtype == torch.float32
    assert pixels[0].unique().tolist() == [-1.0]
    assert pixels[1].unique().tolist() == [1.0]


def test_a_file_that_broke_since_it_was_checked_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a\.png: cannot be read"):
        decoding.load(tmp_path / "a.png", whole(8, 8))


def test_phones_second_image_is_no_animation(tmp_path):
    gradient(16, 16).save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[gradient(8, 8)])
    assert not decoding.inspect(tmp_path / "a.jpg").is_animated
    assert np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg"))).shape == (16, 16, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_raw_image_is_upright_whole_or_reduced(tmp_path, orientation):
    upright = gradient(640, 320)
    back = {
        6: Image.Transpose.ROTATE_90,
        8: Image.Transpose.ROTATE_270,
        **{n: decoding.TURNS[n] for n in (2, 3, 4, 5, 7)},
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(back[orientation]) if orientation > 1 else upright
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    seen, whole_image = decoding.raw(tmp_path / "a.jpg")
    assert (seen.width, seen.height) == whole_image.size == (640, 320)
    assert np.abs(np.asarray(whole_image).astype(int) - np.asarray(upright)).mean() < 3
    seen, reduced = decoding.raw(tmp_path / "a.jpg", area=160 * 80)
    assert (seen.width, seen.height) == (640, 320)
    assert reduced.size == (160, 80)
    assert np.abs(np.asarray(reduced.resize((640, 320))).astype(int) - np.asarray(upright)).mean() < 3


def test_a_raw_image_keeps_what_is_transparent_and_only_that(tmp_path):
    hidden = np.array([[[255, 0, 0, 0], [0, 128, 255, 255]]], np.uint8)
    Image.fromarray(hidden).save(tmp_path / "rgba.png")
    assert np.array_equal(np.asarray(decoding.raw(tmp_path / "rgba.png")[1]), hidden)
    Image.new("RGBA", (8, 8), (1, 2, 3, 255)).save(tmp_path / "opaque.png")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "palette.png", transparency=1)
    assert decoding.raw(tmp_path / "opaque.png")[1].mode == "RGB"
    assert decoding.raw(tmp_path / "palette.png")[1].getpixel((3, 3)) == (0, 255, 0, 0)


def test_raw_images_of_every_depth_and_colour_space_have_their_colours(tmp_path):
    sixteen = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    sixteen.save(tmp_path / "grey.png")
    sixteen.save(tmp_path / "grey.tiff")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.gif")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()  # of another colour space: ignored
    Image.new("RGBA", (8, 8), (255, 0, 0, 9)).save(tmp_path / "red.png", icc_profile=profile)
    assert decoding.raw(tmp_path / "grey.png")[1].getpixel((0, 0)) == (128, 128, 128)
    assert decoding.raw(tmp_path / "grey.tiff")[1].getpixel((0, 0)) == (128, 128, 128)
    for name in ("red.jpg", "red.gif", "red.png"):
        red, green, blue = decoding.raw(tmp_path / name)[1].getpixel((0, 0))[:3]
        assert red > 235
        assert max(green, blue) < 40, name


def test_raw_runs_no_other_program_and_tells_what_is_broken(tmp_path):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_bytes(eps)
    gradient(200, 200).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    for name in ("a.png", "half.jpg"):
        with pytest.raises(decoding.BrokenImage):
            decoding.raw(tmp_path / name)
    assert not {"EPS", "WMF", "PDF"} & set(decoding.RAW_READABLE)
