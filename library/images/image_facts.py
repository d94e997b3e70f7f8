"""What can be said of an image without any model: its format, a plain background, its prevailing colour.

Weak but true, in danbooru's words where it has one ("white background", "greyscale", "red theme"). The format is called
"portrait format", because "portrait" alone means a head. To name another colour: add it to COLOURS.

Colours are compared in OKLab (Björn Ottosson 2020, "A perceptual color space for image processing"), where distances
are close to what people see.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageColor

SIDE = 64  # pixels of the small copy that is looked at: grain and JPEG noise average out
SQUARE = 1.1  # a longer side up to this many times the shorter one counts as square

EDGE = 0.03  # of the side: how wide the edges are
PLAIN_SHARE = 0.95  # of the left, upper and right edge must have one colour; below the subject may leave the image
PLAIN_DISTANCE = 0.03  # in OKLab, where black and white are 1 apart
THEME_SHARE = 0.5  # of what is not plain background has the prevailing colour
SUBJECT_SHARE = 0.02  # of the image, at least, must not be background for its colour to mean anything
GREY_CHROMA = 0.015  # a greyscale image has less everywhere; JPEG noise has up to 0.01
HUE_WEIGHT = 2.0  # of green-red and blue-yellow against lightness: a shadow changes no name

NEUTRAL = ("white", "grey", "black")
COLOURS = {  # word -> CSS colours that it stands for; the nearest one names a colour
    "white": "white ghostwhite snow ivory",
    "grey": "#d3d3d3 silver gray dimgray #404040",
    "black": "black #1c1c1c",
    "red": "red darkred firebrick crimson brown maroon #d04040",
    "orange": "orange darkorange #ff7f27 #e08030",
    "brown": "saddlebrown sienna peru tan #5c3a1e #3d2616 chocolate rosybrown",
    "beige": "beige wheat antiquewhite #ffdbac bisque",
    "yellow": "yellow gold khaki #fff59d goldenrod",
    "green": "green lime darkgreen olive olivedrab seagreen lightgreen yellowgreen palegreen darkolivegreen",
    "aqua": "aqua teal turquoise paleturquoise darkcyan",
    "blue": "blue navy royalblue skyblue lightblue #ccddff steelblue #23395d",
    "purple": "purple indigo violet mediumpurple rebeccapurple plum #d8c8f0 #3c1361",
    "pink": "pink hotpink deeppink lightpink palevioletred magenta lightcoral",
}


def facts(image: Image.Image) -> list[str]:
    """Tags for an image: RGB, upright, on white."""
    words = [orientation(*image.size)]
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    colours = oklab(np.asarray(small))
    background = plain_background(colours)
    subject = colours.reshape(-1, 3)
    if background is not None:
        words.append(f"{colour_names(background[None])[0]} background")
        subject = subject[np.linalg.norm(subject - background, axis=1) > 2 * PLAIN_DISTANCE]
    if np.hypot(colours[..., 1], colours[..., 2]).max() < GREY_CHROMA:
        return [*words, "greyscale", "monochrome"]
    if len(subject) >= SUBJECT_SHARE * SIDE**2:
        names, counts = np.unique(colour_names(subject), return_counts=True)
        name = names[counts.argmax()]
        if counts.max() >= THEME_SHARE * len(subject) and name not in NEUTRAL:
            words.append(f"{name} theme")
    return words


def orientation(width: int, height: int) -> str:
    """The format in words."""
    if max(width, height) <= SQUARE * min(width, height):
        return "square format"
    return "landscape format" if width > height else "portrait format"


def plain_background(colours: np.ndarray) -> np.ndarray | None:
    """(3,) the one colour of an image's left, upper and right edge; None: they have several.

    Args:
        colours: (h, w, 3) in OKLab.
    """
    width = max(1, round(EDGE * len(colours)))
    edges = (colours[:, :width], colours[:, -width:], colours[:width])
    edge = np.concatenate([part.reshape(-1, 3) for part in edges])
    middle = np.median(edge, axis=0)
    near = np.linalg.norm(edge - middle, axis=-1) <= PLAIN_DISTANCE
    return middle if near.mean() >= PLAIN_SHARE else None


def colour_names(colours: np.ndarray) -> np.ndarray:
    """(n,) the word for each of some colours, a key of COLOURS.

    Args:
        colours: (n, 3) in OKLab.
    """
    words, places = _named()
    colours = _weighted(colours)
    # |a - b|² less |a|², which is the same for all b
    return words[((places**2).sum(axis=1) - 2 * colours @ places.T).argmin(axis=1)]


@lru_cache(maxsize=1)
def _named() -> tuple[np.ndarray, np.ndarray]:
    """The word, (k,), and the place, (k, 3), of each colour in COLOURS."""
    pairs = [(word, ImageColor.getrgb(css)) for word, listed in COLOURS.items() for css in listed.split()]
    return np.array([word for word, _ in pairs]), _weighted(oklab(np.array([rgb for _, rgb in pairs], np.uint8)))


def _weighted(colours: np.ndarray) -> np.ndarray:
    return colours * np.array([1.0, HUE_WEIGHT, HUE_WEIGHT])


def oklab(rgb: np.ndarray) -> np.ndarray:
    """sRGB, (..., 3) uint8 -> OKLab, (..., 3): lightness 0 to 1, then green to red and blue to yellow."""
    values = rgb.astype(np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(cones) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )
