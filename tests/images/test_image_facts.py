"""Facts of an image are stated only where they are true."""

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageDraw

from library.images.image_facts import colour_names, facts, oklab, orientation


def drawn(background: str, subject: str = "teal", size: tuple[int, int] = (200, 300), grain: float = 0) -> Image.Image:
    """A subject that stands on the lower edge."""
    image = Image.new("RGB", size, background)
    across, down = size
    ImageDraw.Draw(image).rectangle((across * 0.3, down * 0.3, across * 0.7, down), fill=subject)
    noisy = np.asarray(image) + np.random.default_rng(0).normal(0, grain, (down, across, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def test_format_background_and_colour_are_named():
    assert facts(drawn("white", "red")) == ["portrait format", "white background", "red theme"]
    assert facts(drawn("#ccddff", "gray", (300, 200))) == ["landscape format", "blue background"]


@pytest.mark.parametrize(
    ("size", "word"),
    [((100, 100), "square"), ((109, 100), "square"), ((120, 100), "landscape"), ((100, 120), "portrait")],
)
def test_orientation(size, word):
    assert orientation(*size) == f"{word} format"


def test_grain_and_jpeg_do_not_hide_a_plain_background():
    assert "white background" in facts(drawn("white", grain=6))
    assert "pink background" in facts(drawn("pink", grain=6))


def test_what_is_not_plain_is_not_called_so():
    gradient = Image.fromarray(np.tile(np.linspace(0, 255, 200, dtype=np.uint8)[:, None, None], (1, 200, 3)))
    striped = drawn("white")
    ImageDraw.Draw(striped).rectangle((0, 0, 40, 300), fill="silver")
    for image in (gradient, striped):
        assert not [word for word in facts(image) if "background" in word]


def test_a_grey_image_is_greyscale_and_one_with_a_little_colour_is_not():
    grey = drawn("white", "dimgray")
    assert facts(grey) == ["portrait format", "white background", "greyscale", "monochrome"]
    ImageDraw.Draw(grey).rectangle((90, 120, 110, 140), fill="red")
    assert "greyscale" not in facts(grey)


def test_several_colours_are_no_theme():
    image = drawn("white", "red")
    ImageDraw.Draw(image).rectangle((60, 150, 140, 220), fill="blue")
    ImageDraw.Draw(image).rectangle((60, 221, 140, 300), fill="green")
    assert not [word for word in facts(image) if "theme" in word]


@pytest.mark.parametrize(
    ("css", "name"),
    [
        ("white", "white"), ("black", "black"), ("red", "red"), ("orange", "orange"), ("yellow", "yellow"),
        ("green", "green"), ("blue", "blue"), ("purple", "purple"), ("pink", "pink"), ("beige", "beige"),
        ("gray", "grey"), ("#f4f4f4", "white"), ("#151515", "black"), ("#333333", "grey"), ("saddlebrown", "brown"),
        ("teal", "aqua"), ("navy", "blue"), ("#87ceeb", "blue"), ("#8d5524", "brown"), ("salmon", "pink"),
    ],
)  # fmt: skip
def test_colours_have_the_names_people_give_them(css, name):
    colour = oklab(np.array([ImageColor.getrgb(css)], np.uint8))
    assert colour_names(colour).tolist() == [name]


def test_oklab_is_the_papers():
    """White, and the three colours whose values are published with it."""
    given = np.array([[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    expected = [[1, 0, 0], [0.62796, 0.22486, 0.12585], [0.86644, -0.23389, 0.1795], [0.45201, -0.03246, -0.31153]]
    np.testing.assert_allclose(oklab(given), expected, atol=2e-4)
