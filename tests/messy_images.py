"""Sixty images as a person collects them: turned, doubled, framed, stamped, broken, with captions in old encodings.

    python -m tests.messy_images FOLDER

All show the miniature's character, so what is made of them can be trained on. `make` says what each file is.
"""

import io
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from library.miniature.drawings import POSES, CharacterScene, character_caption, draw_character

ORIENTATION = 0x0112  # the EXIF entry
TURNED_BACK = {  # what a camera held so has stored, by the orientation that undoes it
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "msyh.ttc", "DejaVuSans.ttf")


def _scene(number: int) -> CharacterScene:
    rng = random.Random(f"scene {number}")
    return CharacterScene(
        POSES[number % len(POSES)],
        position=rng.choice(["center", "left", "right"]),
        size=rng.choice(["large", ""]),
        background=rng.choice(["white", "gray", "blue", "green", "pink"]),
        pattern=rng.choice(["plain", "plain", "striped", "dotted", "gradient"]),
        jitter=(rng.uniform(-1, 1), rng.uniform(-1, 1)),
    )


def _drawn(number: int, width: int, height: int) -> Image.Image:
    """A drawing with some grain, as photos have it; smooth areas of one colour would pass for borders."""
    image = np.asarray(draw_character(_scene(number), (width, height)), np.int16)
    grain = np.random.default_rng(number).normal(0, 4, image.shape)
    return Image.fromarray((image + grain).clip(0, 255).astype(np.uint8))


def _font(size: int) -> ImageFont.ImageFont:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def _stamped(image: Image.Image, text: str, opacity: int, place: str) -> Image.Image:
    """A watermark in a corner or along the bottom."""
    layer = Image.new("RGBA", image.size)
    pen, font = ImageDraw.Draw(layer), _font(max(14, image.height // 18))
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    x = 12 if place == "left" else image.width - (right - left) - 12
    y = image.height - (bottom - top) - 16
    pen.text((x + 2, y + 2 - top), text, font=font, fill=(0, 0, 0, opacity))
    pen.text((x, y - top), text, font=font, fill=(255, 255, 255, opacity))
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def _framed(image: Image.Image, colour: tuple[int, int, int], across: int, down: int) -> Image.Image:
    framed = Image.new("RGB", (image.width + 2 * across, image.height + 2 * down), colour)
    framed.paste(image, (across, down))
    return framed


def _cut_out(image: Image.Image, number: int) -> Image.Image:
    """The character alone; what is transparent keeps its hidden colours."""
    scene = _scene(number)
    plain = draw_character(
        CharacterScene(scene.pose, scene.position, scene.size, "white", jitter=scene.jitter), image.size
    )
    alpha = np.asarray(plain.convert("RGB"), np.int16).min(axis=-1) < 235
    image = image.copy()
    image.putalpha(Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(5)))
    return image


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    quickly = dict(compress_level=1) if kind == "PNG" else {}
    image.save(data, kind, **(quickly | options))
    return data.getvalue()


def _turned(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return _saved(image.transpose(TURNED_BACK[orientation]), "JPEG", quality=92, exif=exif)


def _sixteen_bit(image: Image.Image) -> bytes:
    return _saved(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG")


Made = tuple[str, str, Callable[[], bytes]]  # name, what it is, its bytes


def _images() -> Iterator[Made]:
    """Name, kind and bytes of each."""
    for number in range(12):  # as they should be, but of many sizes and formats
        width, height = [(640, 640), (512, 768), (900, 600), (1200, 1200)][number % 4]
        kind, ending = [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("BMP", "bmp")][number % 4]
        name = ["角色 正面", "IMG_00", "照片（", "naïve café ", "a.b.c-", "ミク "][number % 6]
        yield (
            f"{name}{number}{'）' if name.endswith('（') else ''}.{ending}",
            "good",
            lambda n=number, w=width, h=height, k=kind: _saved(_drawn(n, w, h), k),
        )
    for number, orientation in zip(range(12, 18), (3, 6, 8, 6, 8, 6), strict=True):
        width, height = (600, 800) if orientation != 3 else (800, 600)
        yield (
            f"手机/IMG_20240{number}.{'JPG' if number % 2 else 'jpg'}",
            "turned",
            lambda n=number, w=width, h=height, o=orientation: _turned(_drawn(n, w, h), o),
        )
    for number in range(18, 23):
        yield (
            f"cut out/透明 {number}.png",
            "transparent",
            lambda n=number: _saved(_cut_out(_drawn(n, 600, 600), n), "PNG"),
        )
    stamps = ["@somebody", "www.example.com", "样片 SAMPLE", "2024-05-01 12:30", "© studio"]
    for number, text in zip(range(23, 28), stamps, strict=True):
        place = "left" if number % 2 else "right"
        yield (
            f"web/stamped {number}.png",
            "stamped",
            lambda n=number, t=text, p=place: _saved(_stamped(_drawn(n, 768, 768), t, 230, p), "PNG"),
        )
    for number in range(28, 32):
        colour, across, down = [((0, 0, 0), 0, 90), ((0, 0, 0), 120, 0), ((255, 255, 255), 40, 40), ((8, 8, 8), 0, 60)][
            number - 28
        ]
        yield (
            f"video/截图 {number}.jpg",
            "framed",
            lambda n=number, c=colour, a=across, d=down: _saved(
                _framed(_drawn(n, 720, 640), c, a, d), "JPEG", quality=90
            ),
        )
    for number, (twin, side) in enumerate(
        [(0, 320), (1, 300), (4, 1024), (8, 480), (0, 640), (5, 400), (12, 400), (9, 256)]
    ):
        yield (
            f"again/copy {number}.{'png' if side == 640 else 'jpg'}",
            "duplicate",
            lambda t=twin, s=side: _saved_again(t, s),
        )
    for number in range(32, 36):
        yield f"small/thumb_{number}.png", "small", lambda n=number: _saved(_drawn(n, 44, 56), "PNG")
    for number in range(36, 39):
        yield (
            f"blurred {number}.jpg",
            "blurred",
            lambda n=number: _saved(_drawn(n, 640, 640).filter(ImageFilter.GaussianBlur(9)), "JPEG"),
        )
    for number in range(39, 41):
        yield f"noisy {number}.jpg", "noisy", lambda n=number: _saved(_noisy(_drawn(n, 640, 640)), "JPEG", quality=95)
    yield "scan 41.png", "16-bit grey", lambda: _sixteen_bit(_drawn(41, 500, 700))
    yield "print 42.jpg", "cmyk", lambda: _saved(_drawn(42, 640, 640).convert("CMYK"), "JPEG")
    yield "sticker 43.png", "palette", lambda: _saved(_drawn(43, 500, 500).quantize(64), "PNG", transparency=0)
    yield "moving 44.gif", "animated", lambda: _animated(44)
    yield "archive 45.tiff", "tiff", lambda: _saved(_drawn(45, 700, 500), "TIFF")
    yield "broken/half.jpg", "truncated", lambda: _saved(_drawn(46, 640, 640), "JPEG")[:9000]
    yield "broken/empty.png", "empty", lambda: b""
    yield "broken/网页.png", "not an image", lambda: "<html>404 未找到</html>".encode()
    yield "broken/strip.png", "elongated", lambda: _saved(Image.new("RGB", (4000, 40), "red"), "PNG")
    yield "😀 smile.png", "good", lambda: _saved(_drawn(47, 640, 512), "PNG")
    yield "UPPER.PNG", "good", lambda: _saved(_drawn(48, 512, 640), "PNG")


def _saved_again(twin: int, side: int) -> bytes:
    """One of the good ones or of the turned ones once more: as a copy to the byte, smaller, larger or saved harder."""
    made = [data for _, kind, data in _images() if kind in ("good", "turned")]
    original = made[twin]()
    if side == 640:
        return original
    with Image.open(io.BytesIO(original)) as opened:
        image = opened.convert("RGB")
        orientation = opened.getexif().get(ORIENTATION, 1)
    if orientation == 3:
        image = image.transpose(TURNED_BACK[3])
    image = image.resize((side, round(side * image.height / image.width)), Image.Resampling.LANCZOS)
    return _saved(image, "JPEG", quality=60)


def _noisy(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(1).normal(0, 40, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image, np.float32) + noise).clip(0, 255).astype(np.uint8))


def _animated(number: int) -> bytes:
    frames = [_drawn(number + step, 400, 400) for step in range(3)]
    return _saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)


CAPTIONS = {  # of the good ones, by number: encoding
    0: "utf-8", 1: "gbk", 2: "utf-8-sig", 3: "utf-16", 4: "gbk", 5: "utf-8",
}  # fmt: skip


def make(folder: Path) -> dict[str, str]:
    """Write them all; gives {name: what it is}. Six of them have captions, in four encodings."""
    made = {}
    for number, (name, kind, data) in enumerate(_images()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data())
        made[name] = kind
        if number in CAPTIONS:
            caption = character_caption(_scene(number)).removeprefix("mytag, ")
            caption += ", 角色" if CAPTIONS[number] == "gbk" else ""
            path.with_suffix(".txt").write_bytes(caption.encode(CAPTIONS[number]))
    return made


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("python -m tests.messy_images FOLDER")
    for made_name, what in make(Path(sys.argv[1])).items():
        print(f"{what:14} {made_name}")
