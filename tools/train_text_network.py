"""How text_network.onnx is trained, which tells text over an image from all else.

    python -m tools.train_text_network --photos FOLDER        about half an hour on two CPU cores

Text in the machine's fonts is written over images that are drawn here and, every second time, over parts of photos
without text; a small network of convolutions learns where. The one that is there was trained with 30 sample photos of
scikit-image, scikit-learn, matplotlib and OpenCV, in two sittings of 3000 and 4000 steps. tests/overlaid_text.py
measures it.
"""

from __future__ import annotations

import argparse
import io
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor, nn

from library.images.text_regions import CELL, NETWORK

SIDE = 192  # of the images learnt from; the network itself takes any size
BATCH, STEPS, LR = 8, 7000, 3e-3
REUSED, MIXED = 3, 200  # how often a ground is written on, and among how many it waits for that
WIDTH = 24  # channels
DILATIONS = (1, 2, 4, 8, 2, 1)  # of the layers at a quarter of the size; they see 37 cells, 148 pixels, around

FONTS = ("/usr/share/fonts", "/Library/Fonts", "C:/Windows/Fonts")
NOT_LETTERS = ("D050000L", "Droid", "StandardSymbols", "MathTeX", "emoji", "symbol", "wingding", "webdings")
HELD_OUT = ("NotoSerifCJK-Bold", "LiberationSerif", "P052")  # for measuring: tests/overlaid_text.py
CJK = ("CJK", "wqy", "msyh", "simsun", "simhei", "PingFang")
LETTERS = "abcdefghijklmnopqrstuvwxyz" * 3 + "ABCDEFGHIJKLMNOPQRSTUVWXYZ" * 2 + "0123456789" * 4 + "@.-:/©#&!'_"
KANA = "".join(chr(code) for code in range(0x3041, 0x30F7) if chr(code).isalpha())
HANZI = "".join(  # the 3,755 usual ones
    bytes([row, column]).decode("gb2312", "ignore") for row in range(0xB0, 0xD8) for column in range(0xA1, 0xFF)
)

Colour = tuple[int, int, int]


# ---- Grounds: images without text ----------------------------------------------------------------------------------


def gradient(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Skies and walls."""
    ramp = Image.linear_gradient("L").rotate(rng.choice([0, 90, 180, 270])).resize(size)
    return Image.composite(Image.new("RGB", size, _colour(rng)), Image.new("RGB", size, _colour(rng)), ramp)


def texture(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Noise of several grains, as grass, cloth, clouds and film have."""
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    total = np.zeros((size[1], size[0], 3), np.float32)
    stretch = rng.choice([(1, 1), (1, 1), (4, 1), (1, 4)])  # wood and water run one way
    for grain in (1, 3, 8, 30, 100):
        shape = (size[1] // (grain * stretch[0]) + 2, size[0] // (grain * stretch[1]) + 2)
        small = Image.fromarray(numbers.normal(0, 1, shape).astype(np.float32))
        spread = np.asarray(small.resize(size, Image.Resampling.BICUBIC))
        total += spread[..., None] * (numbers.uniform(0, 26) + numbers.uniform(-5, 5, 3)).astype(np.float32)
    return Image.fromarray((total + np.array(_colour(rng), np.float32)).clip(0, 255).astype(np.uint8))


def stripes(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Blinds, boards, bars: of one width and all the way, at any slant."""
    wide = max(size) * 2
    image = Image.new("RGB", (wide, wide), _colour(rng))
    pen, colour = ImageDraw.Draw(image), _colour(rng)
    step = rng.randint(5, 44)
    thick = max(1, round(step * rng.uniform(0.15, 0.7)))
    for place in range(0, wide, step):
        pen.rectangle((place, 0, place + thick - 1, wide), fill=colour)
    return _turned(rng, image, size)


def fence(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Pales on rails, a row of short bars: like a line of letters l."""
    image, pen, colour = _plain(rng, size)
    step, tall = rng.randint(5, 30), rng.randint(max(6, size[1] // 24), size[1] // 4)
    top = rng.randint(0, size[1] - tall)
    for left in range(rng.randint(-step, 0), size[0], step):
        pen.rectangle((left, top, left + max(1, step // 3), top + tall), fill=colour)
    for place in range(rng.randint(0, 2)):
        rail = top + tall // 5 + place * tall // 2
        pen.rectangle((0, rail, size[0], rail + step // 4), fill=colour)
    return image


def dots(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Cloth, lamps, pebbles in rows."""
    image, pen, colour = _plain(rng, size)
    step = rng.randint(7, 50)
    radius, shake = step * rng.uniform(0.12, 0.5), rng.choice([0, 0, step / 4])
    ring = rng.random() < 0.3
    for row, top in enumerate(range(-step, size[1] + step, step)):
        for left in range(-step, size[0] + step, step):
            x, y = left + step // 2 * (row % 2) + rng.uniform(-shake, shake), top + rng.uniform(-shake, shake)
            box = (x - radius, y - radius, x + radius, y + radius)
            pen.ellipse(box, fill=None if ring else colour, outline=colour, width=max(1, round(radius / 3)))
    return image


def hair(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Thin strands that run beside one another, or branches that cross."""
    image, pen, _ = _plain(rng, size)
    base, spread = np.array(_colour(rng)), rng.uniform(10, 60)
    lean, wave, mess = rng.uniform(-1.5, 1.5), rng.uniform(0, 40), rng.choice([0.05, 0.3, 2])
    thickest = rng.randint(1, 5)
    for _ in range(rng.randint(30, 500)):
        x, y, long = rng.uniform(-50, size[0]), rng.uniform(-size[1] / 2, size[1]), rng.uniform(20, size[1])
        own = lean + rng.uniform(-mess, mess)
        points = [(x + own * t * long + wave * np.sin(t * 4 + x / 200), y + t * long) for t in np.linspace(0, 1, 9)]
        pen.line(points, fill=_near(rng, base, spread), width=rng.randint(1, thickest))
    return image


def leaves(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Small shapes over one another, of many shades: foliage, gravel, crowds."""
    image, pen, _ = _plain(rng, size)
    base, spread = np.array(_colour(rng)), rng.uniform(15, 90)
    smallest = rng.uniform(2, 8)
    largest = smallest * rng.uniform(1.2, 4)
    corners = rng.randint(3, 6)
    for _ in range(rng.randint(40, 900)):
        x, y, radius = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(smallest, largest)
        turn = rng.uniform(0, 6.3)
        points = [
            (x + radius * np.cos(turn + 6.3 * n / corners) * s, y + radius * np.sin(turn + 6.3 * n / corners) * s)
            for n, s in enumerate(rng.choices([1, 1, 0.5], k=corners))
        ]
        pen.polygon(points, fill=_near(rng, base, spread))
    return image


def houses(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Rows of windows, tiles, bricks, books: many boxes in a line."""
    image, pen, colour = _plain(rng, size)
    wide, high = rng.randint(4, 30), rng.randint(4, 40)
    gap = rng.randint(1, max(2, wide))
    frame, mixed, bond = _colour(rng), rng.random() < 0.4, rng.random() < 0.4
    cross = wide > 8 and rng.random() < 0.5
    for row, top in enumerate(range(rng.randint(-high, 0), size[1], high + rng.choice([gap, high]))):
        left = rng.randint(-wide, 0) + bond * (row % 2) * (wide + gap) // 2
        while left < size[0]:
            own = wide if not mixed else rng.randint(3, 2 * wide)
            shade = _near(rng, np.array(colour), 60) if mixed else colour
            tall = high if not mixed else rng.randint(max(1, high // 2), high)
            pen.rectangle((left, top + high - tall, left + own, top + high), fill=shade)
            if cross:
                pen.line((left + own // 2, top, left + own // 2, top + high), fill=frame)
                pen.line((left, top + high // 2, left + own, top + high // 2), fill=frame)
            left += own + gap
    return image


def things(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Large and small shapes, outlines, thick and thin lines, curves: drawings, machines, shelves."""
    image, pen, _ = _plain(rng, size)
    for _ in range(rng.randint(3, 50)):
        x, y = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        wide, high = (2 ** rng.uniform(2, 7.5) for _ in range(2))
        box, colour, line = (x - wide, y - high, x + wide, y + high), _colour(rng), rng.randint(1, 8)
        kind = rng.randrange(6)
        if kind == 0:
            pen.ellipse(box, fill=colour)
        elif kind == 1:
            pen.ellipse(box, outline=colour, width=line)
        elif kind == 2:
            pen.rectangle(box, fill=colour)
        elif kind == 3:
            pen.rectangle(box, outline=colour, width=line)
        elif kind == 4:
            pen.line([(x + rng.gauss(0, wide), y + rng.gauss(0, high)) for _ in range(rng.randint(2, 5))],
                     fill=colour, width=line)  # fmt: skip
        else:
            pen.arc(box, rng.uniform(0, 360), rng.uniform(0, 720), fill=colour, width=line)
    return image


def clutter(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Shapes of all sizes over one another, shaded and rimmed: what photos are, seen as edges ("dead leaves")."""
    twice = (2 * size[0], 2 * size[1])
    image, pen, _ = _plain(rng, twice)
    palette, spread = [np.array(_colour(rng)) for _ in range(rng.randint(2, 5))], rng.uniform(5, 40)
    largest, smallest = rng.uniform(60, 200), rng.uniform(3, 12)
    count = rng.randint(60, 500)
    for number in range(count):  # the small ones last, or they would be covered
        radius = largest * (smallest / largest) ** ((number / count) ** 0.7) * rng.uniform(0.6, 1.5)
        x, y, tall = rng.uniform(0, twice[0]), rng.uniform(0, twice[1]), 2 ** rng.uniform(-1.5, 1.5)
        fill = _near(rng, rng.choice(palette), spread)
        rim = _near(rng, np.array(fill), 50) if rng.random() < 0.3 else None
        if rng.random() < 0.5:
            box = (x - radius, y - radius * tall, x + radius, y + radius * tall)
            pen.ellipse(box, fill=fill, outline=rim, width=rng.randint(1, 3))
            if rng.random() < 0.3:  # lit from one side
                pen.arc(
                    box, rng.uniform(0, 360), rng.uniform(0, 720), _near(rng, np.array(fill), 60), rng.randint(1, 4)
                )
        else:
            turn, corners = rng.uniform(0, 6.3), rng.randint(3, 7)
            points = [
                (x + radius * np.cos(a) * s, y + radius * np.sin(a) * s * tall)
                for a, s in ((turn + 6.3 * n / corners, rng.uniform(0.5, 1)) for n in range(corners))
            ]
            pen.polygon(points, fill=fill, outline=rim)
    return image.reduce(2)


def relief(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Noise or clutter lit from one side: coins, rocks, carvings, folds."""
    grey = rng.choice([clutter, texture, leaves])(rng, size).convert("L").filter(ImageFilter.GaussianBlur(1.5))
    pixels = np.asarray(grey, np.float32)
    across, down = np.gradient(pixels)
    turn, strength = rng.uniform(0, 6.3), rng.uniform(1, 5)
    lit = 128 + strength * (np.cos(turn) * across + np.sin(turn) * down)
    lit = lit[..., None] * np.array(_colour(rng), np.float32) / 128 * rng.uniform(0.7, 1.5)
    return Image.fromarray(lit.clip(0, 255).astype(np.uint8))


GROUNDS = (gradient, texture, stripes, fence, dots, hair, leaves, houses, things, clutter, clutter, relief)


def photographed(rng: random.Random, size: tuple[int, int], photos: list[Image.Image]) -> Image.Image:
    """A part of a photo, at some size, mirrored or turned over."""
    photo = rng.choice(photos)
    factor = 2 ** rng.uniform(-1, 1.3) * 640 / max(photo.size)
    wide, high = (min(side / factor, whole) for side, whole in zip(size, photo.size, strict=True))
    left, top = rng.uniform(0, photo.width - wide), rng.uniform(0, photo.height - high)
    image = photo.resize(size, Image.Resampling.BILINEAR, (left, top, left + wide, top + high), reducing_gap=2)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.2:
        image = image.transpose(rng.choice(list(Image.Transpose)[:5]))
    return image


def ground(rng: random.Random, size: tuple[int, int], photos: list[Image.Image]) -> Image.Image:
    """An image without text: one of the kinds, or two with a border between them; sharp or not, shaded, grainy."""
    if photos and rng.random() < 0.5:
        image = photographed(rng, size, photos)
        if rng.random() < 0.5:
            return image
    else:
        image = rng.choice(GROUNDS)(rng, size)
    for _ in range(rng.choice([0, 1, 1, 2])):
        mask = Image.new("L", size)
        middle = [(rng.uniform(0, size[0]), rng.uniform(0, size[1])) for _ in range(rng.randint(3, 7))]
        ImageDraw.Draw(mask).polygon(middle, fill=255)
        mask = mask.filter(ImageFilter.GaussianBlur(rng.choice([0, 1, 4])))
        image = Image.composite(rng.choice(GROUNDS)(rng, size), image, mask)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.choice([0.7, 1, 1.5, 3])))
    pixels = np.asarray(image, np.float32)
    if rng.random() < 0.4:  # light falls from somewhere
        pixels = pixels * np.asarray(gradient(rng, size), np.float32)[..., :1] / 160
    if rng.random() < 0.3:
        pixels = pixels.mean() + (pixels - pixels.mean()) * rng.uniform(0.2, 0.8)
    if rng.random() < 0.15:
        pixels = np.repeat(pixels.mean(2, keepdims=True), 3, 2)
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    pixels = pixels + numbers.normal(0, rng.choice([0, 2, 5, 10]), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _colour(rng: random.Random) -> Colour:
    return (rng.randrange(256), rng.randrange(256), rng.randrange(256))


def _near(rng: random.Random, base: np.ndarray, spread: float) -> Colour:
    return tuple(int(value) for value in (base + rng.gauss(0, spread) + rng.uniform(-8, 8)).clip(0, 255))


def _plain(rng: random.Random, size: tuple[int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw, Colour]:
    image = Image.new("RGB", size, _colour(rng))
    return image, ImageDraw.Draw(image), _colour(rng)


def _turned(rng: random.Random, image: Image.Image, size: tuple[int, int]) -> Image.Image:
    turned = image.rotate(rng.choice([0, 0, 90, rng.uniform(0, 180)]), Image.Resampling.BILINEAR)
    left, top = (turned.width - size[0]) // 2, (turned.height - size[1]) // 2
    return turned.crop((left, top, left + size[0], top + size[1]))


# ---- Text ------------------------------------------------------------------------------------------------------------


def fonts() -> tuple[list[Path], list[Path]]:
    """The machine's fonts of letters, and those among them that have Chinese."""
    found = [path for folder in FONTS for path in Path(folder).rglob("*") if path.suffix in (".ttf", ".ttc", ".otf")]
    found = sorted(path for path in found if not any(name.lower() in path.name.lower() for name in NOT_LETTERS))
    found = [path for path in found if not any(name in path.name for name in HELD_OUT)]
    if not found:
        raise SystemExit(f"no font found in {', '.join(FONTS)}: install some, Noto Sans CJK among them")
    return found, [path for path in found if any(name in path.name for name in CJK)]


def words(rng: random.Random, chinese: bool) -> str:
    """Letters as they come: what is learnt must not be the words."""
    signs = rng.choice([HANZI] * 4 + [KANA, HANZI + LETTERS]) if chinese else LETTERS
    if not chinese and rng.random() < 0.25:
        signs = rng.choice(["0123456789:-/. ", signs.upper()])
    longest = 10 if chinese else 9
    parts = ["".join(rng.choices(signs, k=rng.randint(2 if chinese else 3, longest))) for _ in range(rng.randint(1, 3))]
    return " ".join(parts)


def written(
    rng: random.Random, image: Image.Image, kinds: tuple[list[Path], list[Path]]
) -> tuple[Image.Image, Image.Image, Image.Image]:
    """One line of text over an image.

    Returns:
        The image, the box of the text and its core (both L, 255 inside), which are slanted as the text is.
    """
    chinese = bool(kinds[1]) and rng.random() < 0.45
    height = round(2 ** rng.uniform(3.3, 6.1))  # pixels of the font: 10 to 69
    face = ImageFont.truetype(str(rng.choice(kinds[chinese])), height)
    line = words(rng, chinese)
    down = chinese and rng.random() < 0.12
    if down:
        line = "\n".join(line.replace(" ", ""))
    colour = rng.choice([(255, 255, 255)] * 4 + [(0, 0, 0)] * 2 + [_colour(rng)] * 3)
    alpha = round(255 * rng.choice([1, rng.uniform(0.3, 1)]))
    layer, pen = Image.new("RGBA", image.size), None
    pen = ImageDraw.Draw(layer)
    left, top, right, bottom = pen.textbbox((0, 0), line, font=face, spacing=height // 8)
    wide, high = right - left, bottom - top
    x = rng.randint(min(0, image.width - wide), max(0, image.width - wide)) if rng.random() < 0.9 else -wide // 3
    y = rng.randint(0, max(0, image.height - high))
    style = rng.choice(["plain", "plain", "shadow", "outline", "hollow"])
    bright = sum(colour) > 380
    opposite = (0, 0, 0, alpha) if bright else (255, 255, 255, alpha)
    stroke = max(1, height // rng.randint(9, 18)) if style in ("outline", "hollow") else 0
    own = {"font": face, "spacing": height // 8}
    if style == "shadow":
        shift = max(1, height // rng.randint(10, 20))
        pen.text((x - left + shift, y - top + shift), line, fill=opposite, **own)
    if style == "hollow":  # only the outline stays
        pen.text(
            (x - left, y - top), line, fill=(*colour, alpha), stroke_width=stroke, stroke_fill=(*colour, alpha), **own
        )
        pen.text((x - left, y - top), line, fill=(0, 0, 0, 0), **own)
    else:
        pen.text((x - left, y - top), line, fill=(*colour, alpha), stroke_width=stroke, stroke_fill=opposite, **own)
    box, core = Image.new("L", image.size), Image.new("L", image.size)
    inset = max(1.0, 0.15 * (wide if down else high))
    ImageDraw.Draw(box).rectangle((x - 1, y - 1, x + wide, y + high), fill=255)
    ImageDraw.Draw(core).rectangle((x + inset, y + inset, x + wide - inset, y + high - inset), fill=255)
    if rng.random() < 0.3:
        angle = rng.choice([rng.uniform(-6, 6), rng.uniform(-6, 6), rng.uniform(-45, 45)])
        middle = (x + wide / 2, y + high / 2)
        layer = layer.rotate(angle, Image.Resampling.BICUBIC, center=middle)
        box, core = (mask.rotate(angle, Image.Resampling.NEAREST, center=middle) for mask in (box, core))
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB"), box, core


def example(
    rng: random.Random, image: Image.Image, kinds: tuple[list[Path], list[Path]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image (SIDE, SIDE, 3), and of each cell of CELL pixels whether it is text and how much that counts."""
    size = image.size
    target, counts = np.zeros(size, np.float32), np.ones(size, np.float32)
    for _ in range(rng.choice([0, 1, 1, 2, 2, 3])):
        after, box, core = written(rng, image, kinds)
        inside, middle = np.asarray(box) > 0, np.asarray(core) > 0
        if not inside.any() or (target[inside] > 0).any():  # one over the other
            continue
        before = np.asarray(image.convert("L"), np.float32)[inside]
        change = np.abs(np.asarray(after.convert("L"), np.float32)[inside] - before)
        contrast = np.percentile(change, 88)
        if contrast < 10:
            continue
        seen = contrast > max(16, 0.8 * before.std())
        counts[inside] = 0  # the edge of a line may be either
        counts[middle] = float(seen)
        target[middle] = 1
        image = after
    smaller = round(SIDE * rng.uniform(0.5, 1.0))  # many images were enlarged, or are
    if rng.random() < 0.4:
        image = image.resize((smaller, smaller), Image.Resampling.BOX).resize(size, Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        data = io.BytesIO()
        image.save(data, "JPEG", quality=rng.randint(35, 95))
        image = Image.open(data)
    cells = (SIDE // CELL, CELL, SIDE // CELL, CELL)
    return (
        np.array(image),
        target.reshape(cells).mean((1, 3)) > 0.5,
        counts.reshape(cells).min((1, 3)),
    )


class Examples(torch.utils.data.IterableDataset):
    """Drawn as they are needed; each ground comes REUSED times, with other text."""

    def __init__(self, seed: int, photos: Path | None):
        self.seed, self.photos = seed, photos

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(f"text {self.seed} {worker.id if worker else 0}")
        kinds = fonts()
        photos = [Image.open(path).convert("RGB") for path in sorted(self.photos.iterdir())] if self.photos else []
        waiting: list[Image.Image] = []  # so that the same ground is not in one batch
        while True:
            while len(waiting) < MIXED:
                waiting += [ground(rng, (SIDE, SIDE), photos)] * REUSED
            yield example(rng, waiting.pop(rng.randrange(len(waiting))), kinds)


# ---- The network -----------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """A 3 x 3 convolution with batch normalisation and ReLU; added to its input where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.adds = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.convolution(x)))
        return x + y if self.adds else y

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that does the same."""
        scale = self.norm.weight / torch.sqrt(self.norm.running_var + self.norm.eps)
        return self.convolution.weight * scale[:, None, None, None], self.norm.bias - self.norm.running_mean * scale


class TextNetwork(nn.Module):
    """Pixels 0 to 255 (B, 3, H, W) -> logits (B, 1, H / 4, W / 4) of whether a cell is in a line of text."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [Layer(3, 16, 2), Layer(16, WIDTH, 2), *(Layer(WIDTH, WIDTH, 1, dilation) for dilation in DILATIONS)]
        )
        self.last = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels / 128 - 1
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


def loss_of(logits: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """Cross entropy per cell, and one minus the Dice score, which does not care how little of an image is text."""
    cells = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    share = torch.sigmoid(logits) * counts
    both = (share * target).sum()
    dice = 1 - (2 * both + 1) / (share.sum() + (target * counts).sum() + 1)
    return (cells * counts).sum() / counts.sum() + 0.5 * dice


def train(steps: int, seed: int, to: Path, photos: Path | None, report_every: int = 100) -> None:
    """Train a network on ever new images, and save it now and then."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    network = TextNetwork().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps, pct_start=0.05)
    loader = torch.utils.data.DataLoader(Examples(seed, photos), BATCH, num_workers=2, prefetch_factor=8)
    start, total = time.time(), 0.0
    for step, (pixels, target, counts) in zip(range(1, steps + 1), loader, strict=False):
        pixels = pixels.permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last)
        loss = loss_of(network(pixels), target[:, None].float(), counts[:, None].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += float(loss.detach())
        if step % report_every == 0:
            print(
                f"step {step}  loss {total / report_every:.4f}  {(time.time() - start) / step:.2f} s/step", flush=True
            )
            total = 0.0
        if step % 1000 == 0 or step == steps:
            save(network, to)


def save(network: TextNetwork, path: Path) -> None:
    """As an ONNX file of plain convolutions, with any height and width."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    tensors = {"scale": np.float32(1 / 128), "shift": np.float32(1)}
    nodes = [
        helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "shift"], ["x"]),
    ]
    x = "x"
    for number, layer in enumerate(network.layers):
        weight, bias = (tensor.detach().numpy() for tensor in layer.folded())
        tensors |= {f"weight{number}": weight, f"bias{number}": bias}
        convolution = layer.convolution
        nodes.append(
            helper.make_node(
                "Conv", [x, f"weight{number}", f"bias{number}"], [f"conv{number}"],
                strides=convolution.stride, dilations=convolution.dilation, pads=[*convolution.padding] * 2,
            )
        )  # fmt: skip
        nodes.append(helper.make_node("Relu", [f"conv{number}"], [f"relu{number}"]))
        y = f"relu{number}"
        if layer.adds:
            nodes.append(helper.make_node("Add", [x, y], [f"sum{number}"]))
            y = f"sum{number}"
        x = y
    tensors |= {"weight": network.last.weight.detach().numpy(), "bias": network.last.bias.detach().numpy()}
    nodes += [
        helper.make_node("Conv", [x, "weight", "bias"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["text"]),
    ]
    graph = helper.make_graph(
        nodes, "text", [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, "height", "width"])],
        [helper.make_tensor_value_info("text", TensorProto.FLOAT, [1, 1, "rows", "columns"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=NETWORK)
    parser.add_argument("--photos", type=Path, help="a folder of photos without text, for every second picture")
    given = parser.parse_args()
    train(given.steps, given.seed, given.to, given.photos)
