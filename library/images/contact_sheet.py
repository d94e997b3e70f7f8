"""Images in rows and columns with labels, as one image: what was tried, at a glance.

Labels are drawn in a font of the system that has Chinese letters, if there is one. Small images are enlarged, so that
a label has room beside them; large ones are reduced, for the single files are there too.
"""

from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

SMALLEST, LARGEST = 192, 512  # pixels of an image's longer side on the sheet
FONTS = (  # with Chinese letters: Windows, macOS, Linux; Pillow looks for the names in the system's folders
    "msyh.ttc", "simhei.ttf", "simsun.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc", "STHeiti Light.ttc",
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf", "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf",
    "NotoSerifCJK-Regular.ttc", "uming.ttc",
)  # fmt: skip
INK, GROUND = "#22201d", "#ffffff"
MOST_LINES = 6  # of a label


@lru_cache(maxsize=8)
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """A font for labels; Pillow's own, of Latin letters only, where none of FONTS is installed."""
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def sheet(
    images: Sequence[Sequence[Image.Image | None]], rows: Sequence[str], columns: Sequence[str], title: str = ""
) -> Image.Image:
    """A labelled table of images.

    Args:
        images: by rows; None leaves a place empty.
        rows, columns: their labels.
        title: one line, or several, above all.
    """
    sizes = [image.size for row in images for image in row if image] or [(SMALLEST, SMALLEST)]
    longest = max(max(size) for size in sizes)
    factor = min(1.0, LARGEST / longest)
    if longest < SMALLEST:
        factor = -(-SMALLEST // longest)  # a whole one: pixels stay sharp
    width, height = (round(max(size[side] for size in sizes) * factor) for side in (0, 1))
    text_size = max(14, round(min(width, height) / 16))
    gap, pad = max(4, text_size // 3), text_size // 2
    letters = font(text_size)

    side = max(6 * text_size, min(width, max((letters.getlength(line) for line in rows), default=0) + 2 * pad))
    side = int(side)
    column_texts = [wrapped(label, letters, width - 2 * pad) for label in columns]
    row_texts = [wrapped(label, letters, side - 2 * pad) for label in rows]
    line = round(text_size * 1.35)
    total = side + len(columns) * (width + gap) + gap
    head = wrapped(title, letters, total - 2 * pad) if title else []
    above = len(head) * line + (pad if head else 0)
    top = above + max((len(text) for text in column_texts), default=0) * line + 2 * pad
    drawn = Image.new("RGB", (total, top + len(rows) * (height + gap)), GROUND)
    brush = ImageDraw.Draw(drawn)

    def write(left: int, begin: int, lines: list[str]) -> None:
        for number, text in enumerate(lines):
            brush.text((left, begin + number * line), text, INK, letters)

    write(pad, pad, head)
    for number, text in enumerate(column_texts):
        write(side + gap + number * (width + gap) + pad, above + pad, text)
    for number, (text, row) in enumerate(zip(row_texts, images, strict=True)):
        begin = top + number * (height + gap)
        write(pad, begin + max(0, (height - len(text) * line) // 2), text)
        for place, image in enumerate(row):
            if image is None:
                continue
            size = (round(image.width * factor), round(image.height * factor))
            kind = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
            left = side + gap + place * (width + gap)
            drawn.paste(image.convert("RGB").resize(size, kind), (left, begin))
    return drawn


def wrapped(text: str, letters: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Lines that are no wider; broken between words, or within where a word is too long (Chinese has no spaces)."""
    lines = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in _words(paragraph):
            if letters.getlength((line + word).rstrip()) <= width or not line:
                line += word
            else:
                lines.append(line.rstrip())
                line = word.lstrip()
            while letters.getlength(line.rstrip()) > width and len(line) > 1:
                fits = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or letters.getlength(line[:n]) <= width)
                lines.append(line[:fits])
                line = line[fits:]
        lines.append(line.rstrip())
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1][:-1] + "…"]
    return lines


def _words(text: str) -> list[str]:
    """Pieces between which a line may end: words with the space behind them, single Chinese letters."""
    words, word = [], ""
    for letter in text:
        if letter in "，。、；：）" and words and not word:  # begins no line
            words[-1] += letter
            continue
        word += letter
        if letter.isspace() or letter in ",，、-_/>" or ord(letter) >= 0x2E80:
            words.append(word)
            word = ""
    return [*words, word] if word else words
