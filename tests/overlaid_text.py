"""Images with and without text over them, for measuring how well text is found.

    python -m tests.overlaid_text [FOLDER]

measures on drawn images, and on the images of FOLDER too, which should show no text of their own.
"""

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from library.images import text_regions
from library.images.region import Region, clipped, grown
from library.miniature.drawings import POSES, CharacterScene, draw_character

LATIN = ("LiberationSerif-Regular.ttf", "LiberationSerif-Bold.ttf", "P052-Italic.otf", "P052-Roman.otf", "arial.ttf",
         "times.ttf")  # fmt: skip
CHINESE = ("NotoSerifCJK-Bold.ttc", "wqy-microhei.ttc", "msyh.ttc", "simsun.ttc")
LATIN_TEXTS = ("@somebody", "www.example.com", "SAMPLE", "2024-05-01 12:30", "© studio 2023", "Photo by J. Smith",
               "Episode 12", "pixiv id 1234567", "Do not repost", "patreon.com/artist", "'98 5 17")  # fmt: skip
CHINESE_TEXTS = ("样片", "请勿转载", "小红书号：12345", "@微博用户名", "仅供参考 翻版必究", "第十二集", "淘宝网 正品",
                 "摄影：李明 2023年5月")  # fmt: skip


def font(names: tuple[str, ...], size: int) -> ImageFont.FreeTypeFont | None:
    """The first of these fonts that this machine has."""
    for name in names:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return None


# ---- What the text lies over -----------------------------------------------------------------------------------------


def gradient(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    first, second = ([rng.randrange(256) for _ in range(3)] for _ in range(2))
    ramp = Image.linear_gradient("L").rotate(rng.choice([0, 90, 180])).resize(size)
    return Image.composite(Image.new("RGB", size, tuple(first)), Image.new("RGB", size, tuple(second)), ramp)


def texture(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Noise of several grains, as grass, cloth, clouds and film have."""
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    total = np.zeros((size[1], size[0], 3), np.float32)
    for grain in (1, 3, 8, 30, 100):
        small = numbers.normal(0, 1, (size[1] // grain + 2, size[0] // grain + 2)).astype(np.float32)
        spread = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))
        total += spread[..., None] * numbers.uniform(0, 22, 3).astype(np.float32)
    return Image.fromarray((total + rng.uniform(60, 200)).clip(0, 255).astype(np.uint8))


def stripes(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Blinds, boards, bars: of one width and all the way."""
    image, pen, colour = _plain(rng, size)
    step = rng.randint(8, 40)
    for place in range(0, max(size), step):
        box = (0, place, size[0], place + step // 2 - 1) if step % 2 else (place, 0, place + step // 2 - 1, size[1])
        pen.rectangle(box, fill=colour)
    return _grained(rng, image)


def fence(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Pales on rails, a row of short bars: like a line of letters l."""
    image, pen, colour = _plain(rng, size)
    step, tall = rng.randint(10, 30), rng.randint(size[1] // 20, size[1] // 6)
    top = rng.randint(0, size[1] - tall)
    for left in range(0, size[0], step):
        pen.rectangle((left, top, left + step // 3, top + tall), fill=colour)
    if rng.random() < 0.5:
        pen.rectangle((0, top + tall // 3, size[0], top + tall // 3 + step // 4), fill=colour)
    return _grained(rng, image)


def dots(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    image, pen, colour = _plain(rng, size)
    step = rng.randint(12, 50)
    for row, top in enumerate(range(0, size[1], step)):
        for left in range(0, size[0], step):
            x = left + step // 2 * (row % 2)
            pen.ellipse((x, top, x + step // 2, top + step // 2), fill=colour)
    return _grained(rng, image)


def hair(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Hundreds of thin strands that run beside one another."""
    image, pen, _ = _plain(rng, size)
    base = np.array([rng.randrange(30, 200) for _ in range(3)])
    lean, wave = rng.uniform(-0.5, 0.5), rng.uniform(0, 40)
    for _ in range(400):
        x, y, long = rng.uniform(0, size[0]), rng.uniform(-size[1] / 2, size[1]), rng.uniform(40, size[1])
        shade = tuple(int(value) for value in (base + rng.uniform(-40, 40)).clip(0, 255))
        points = [(x + lean * t * long + wave * np.sin(t * 4 + x / 200), y + t * long) for t in np.linspace(0, 1, 12)]
        pen.line(points, fill=shade, width=rng.randint(1, 3))
    return image


def leaves(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Hundreds of small shapes over one another, of many shades."""
    image, pen, _ = _plain(rng, size)
    base = np.array([rng.randrange(20, 180) for _ in range(3)])
    for _ in range(700):
        x, y, radius = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(4, 22)
        shade = tuple(int(value) for value in (base + rng.uniform(-50, 70)).clip(0, 255))
        turn = rng.uniform(0, 6.3)
        points = [(x + radius * np.cos(turn + a) * s, y + radius * np.sin(turn + a) * s)
                  for a, s in ((0, 1), (1.2, 0.5), (3.1, 1), (5, 0.5))]  # fmt: skip
        pen.polygon(points, fill=shade)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))


def houses(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Rows of windows: many boxes of one size in a line, the hardest to tell from letters."""
    image, pen, colour = _plain(rng, size)
    wide, high = rng.randint(8, 30), rng.randint(10, 40)
    for top in range(rng.randint(0, high), size[1], 2 * high):
        for left in range(rng.randint(0, wide), size[0], 2 * wide):
            pen.rectangle((left, top, left + wide, top + high), fill=colour)
            if wide > 14:
                pen.line((left + wide // 2, top, left + wide // 2, top + high), fill=(90, 90, 90))
    return _grained(rng, image)


def drawing(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """The miniature's character."""
    scene = CharacterScene(
        rng.choice(POSES),
        rng.choice(["center", "left", "right"]),
        rng.choice(["large", ""]),
        rng.choice(["white", "gray", "blue", "green", "pink", "black"]),
        rng.choice(["plain", "striped", "dotted", "gradient"]),
        (rng.uniform(-1, 1), rng.uniform(-1, 1)),
    )
    return _grained(rng, draw_character(scene, size))


def _plain(rng: random.Random, size: tuple[int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw, tuple[int, int, int]]:
    image = Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3)))
    return image, ImageDraw.Draw(image), tuple(rng.randrange(256) for _ in range(3))


def _grained(rng: random.Random, image: Image.Image) -> Image.Image:
    grain = np.random.default_rng(rng.randrange(1 << 30)).normal(0, rng.uniform(0, 6), (*image.size[::-1], 3))
    return Image.fromarray((np.asarray(image, np.float32) + grain).clip(0, 255).astype(np.uint8))


GROUNDS = (gradient, texture, stripes, fence, dots, hair, leaves, houses, drawing)


# ---- The text --------------------------------------------------------------------------------------------------------


class Text(NamedTuple):
    """What was written over an image."""

    box: Region
    words: str
    opacity: float
    height: float  # of the letters' font, as a share of the image's height


def overlaid(rng: random.Random, image: Image.Image, *, chinese: bool | None = None) -> tuple[Image.Image, Text]:
    """The image with one line of text at one of the usual places, 2 to 8 % of its height, 40 to 100 % opaque."""
    chinese = rng.random() < 0.4 if chinese is None else chinese
    height = 2 ** rng.uniform(1, 3) / 100
    size = max(9, round(height * image.height))
    names = list(CHINESE if chinese else LATIN)
    rng.shuffle(names)
    face = font(tuple(names), size)
    words = rng.choice(CHINESE_TEXTS if chinese and face else LATIN_TEXTS)
    face = face or ImageFont.load_default(size)
    opacity = rng.uniform(0.4, 1)
    colour = rng.choice([(255, 255, 255)] * 3 + [(0, 0, 0), (255, 150, 0), (220, 30, 30), (255, 230, 60)])
    layer = Image.new("RGBA", image.size)
    pen = ImageDraw.Draw(layer)
    left, top, right, bottom = pen.textbbox((0, 0), words, font=face)
    wide, high = right - left, bottom - top
    edge = max(2, image.height // 50)
    x = rng.choice([edge, image.width - wide - edge, (image.width - wide) // 2])
    y = rng.choice([image.height - high - edge] * 3 + [edge, (image.height - high) // 2])
    alpha = round(255 * opacity)
    style = rng.choice(["plain", "plain", "shadow", "outline"])
    if style == "shadow":
        shift = max(1, size // 16)
        pen.text((x - left + shift, y - top + shift), words, font=face, fill=(0, 0, 0, alpha))
    dark = (0, 0, 0, alpha) if sum(colour) > 300 else (255, 255, 255, alpha)
    stroke = max(1, size // 14) if style == "outline" else 0
    pen.text((x - left, y - top), words, font=face, fill=(*colour, alpha), stroke_width=stroke, stroke_fill=dark)
    made = Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")
    box = clipped(Region(x, y, wide, high), *image.size)
    return made, Text(box, words, opacity, height)


def visible(before: Image.Image, after: Image.Image, text: Text) -> bool:
    """Whether a person would see it: white on white is no text."""
    box = (text.box.left, text.box.top, text.box.right, text.box.bottom)
    one, two = (np.asarray(image.crop(box).convert("L"), np.float32) for image in (before, after))
    change = np.abs(two - one)
    around = one.std()
    return np.percentile(change, 90) > max(18, 1.2 * around)


# ---- The measurement -------------------------------------------------------------------------------------------------


def found_share(text: Region, found: list[Region], size: tuple[int, int]) -> float:
    """How much of a text's box the regions cover."""
    return float(_covered(found, size)[text.top : text.bottom, text.left : text.right].mean())


def stray_share(text: Region | None, found: list[Region], size: tuple[int, int]) -> float:
    """How much of the image is proposed though no text is there or within half its height."""
    covered = _covered(found, size)
    if text:
        near = clipped(grown(text, text.height // 2 + 4), *size)
        covered[near.top : near.bottom, near.left : near.right] = False
    return float(covered.mean())


def _covered(found: list[Region], size: tuple[int, int]) -> np.ndarray:
    covered = np.zeros(size[::-1], bool)
    for region in found:
        covered[region.top : region.bottom, region.left : region.right] = True
    return covered


def grounds(rng: random.Random, count: int, folder: Path | None) -> Iterator[tuple[str, Image.Image]]:
    """Images without text, by kind."""
    if folder:
        for path in sorted(folder.iterdir()):
            with Image.open(path) as opened:
                yield path.name, opened.convert("RGB")
    for number in range(count):
        kind = GROUNDS[number % len(GROUNDS)]
        size = rng.choice([(512, 512), (768, 512), (640, 960), (1200, 900)])
        yield kind.__name__, kind(rng, size)


def measured(
    rng: random.Random, count: int, folder: Path | None = None, find=text_regions.find_text
) -> dict[str, list]:
    """Of each kind of ground: for each image whether its text was found, and what was proposed without text."""
    rows: dict[str, list] = {}
    for kind, before in grounds(rng, count, folder):
        start = time.perf_counter()
        alone = find(np.asarray(before))
        seconds = time.perf_counter() - start
        for _ in range(12 if folder and "." in kind else 1):
            after, text = overlaid(rng, before)
            if not visible(before, after, text):
                continue
            found = find(np.asarray(after))
            rows.setdefault(kind, []).append(
                {
                    "found": found_share(text.box, found, before.size) > 0.7,
                    "stray": stray_share(text.box, found, before.size),
                    "alone": len(alone),
                    "alone_share": stray_share(None, alone, before.size),
                    "seconds": seconds,
                    "text": text,
                }
            )
    return rows


def table(rows: dict[str, list]) -> str:
    """The figures, a line for each kind."""
    lines = [f"{'over':22} texts  found  strays  false alarms (a picture without text)  seconds"]
    everything = [row for kind in rows.values() for row in kind]
    for kind, found in [*rows.items(), ("all", everything)]:
        lines.append(
            f"{kind[:22]:22} {len(found):5}  {np.mean([row['found'] for row in found]):5.0%}  "
            f"{np.mean([row['stray'] for row in found]):6.2%}  {np.mean([row['alone'] for row in found]):5.2f} "
            f"({np.mean([row['alone_share'] for row in found]):.2%} of its area)"
            f"{np.mean([row['seconds'] for row in found]):20.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(measured(random.Random(0), 270, Path(sys.argv[1]) if len(sys.argv) > 1 else None)))
