"""Which encoding texts are in. Texts that are not Unicode are decided together: one alone may be read in several ways.

UTF-8 (with or without byte-order mark) and UTF-16 prove themselves. Any other text is scored in each encoding of the
table below, by how probable its letters are there: natural logarithms, of a person's captions, roughly. `woman\x92s` is
Windows-1252, for in GBK its only letter would be one that nobody writes. All texts of a folder are decided by their
sum. Where a second encoding comes close, that is said, and whoever calls must not write such a text.

To add an encoding: a row in TABLE and in NAMES.
"""

import codecs
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
NAMES = {  # as editors call them
    "gb18030": "GB18030 (GBK)", "cp950": "Big5", "cp932": "Shift-JIS", "cp949": "EUC-KR", "cp1252": "Windows-1252",
    "cp1250": "Windows-1250", "cp1251": "Windows-1251", "cp1253": "Windows-1253", "cp1254": "Windows-1254",
    "koi8_r": "KOI8-R",
}  # fmt: skip
CLOSE = 7.0  # a second encoding that is less probable by less than e^7 might as well be meant
OVERWHELMING = 15.0  # by so much one text may speak against the others of its folder
ABSURD = -9.0  # for a byte beyond ASCII, on average: no text in any encoding
MOST_BYTES = 100_000  # that decide for a folder

# What costs how much. A letter that is usual in its script is cheap, one that hardly anybody writes is dear.
ASCII, PUNCTUATION, ODD, NEVER = -3.3, -5.0, -9.5, -16.8
TYPOGRAPHY = "’‘“”–—…•°©¿¡"
WESTERN = "àáâãäåæçèéêíîïñóôõöøúûüß"
SIGNS = "®£€·½²´«»„™"
HANZI = (
    "的一是了我不人在他有这上们来到时大地为子中说生国年着就那和要她出也得里后自以会家可下而过天去能对小多然"
    "开美长头发当没成只如事把还用第样道想作种总从无情己面最女但现前些所同日手又行意动方经儿回位分爱老因很给名"
    "红色白黑蓝绿黄紫粉灰金银棕橙衣服裙裤帽鞋袜眼睛微笑站坐躺背景室内外短双马尾孩男穿戴拿制校水身看图片照单肩"
)
HANZI_TRADITIONAL = (
    "的一是了我不人在他有這上們來到時大地為子中說生國年著就那和要她出也得裡後自以會家可下而過天去能對小多然"
    "開美長頭髮當沒成只如事把還用第樣道想作種總從無情己面最女但現前些所同日手又行意動方經兒回位分愛老因很給名"
    "紅色白黑藍綠黃紫粉灰金銀棕橙衣服裙褲帽鞋襪眼睛微笑站坐躺背景室內外短雙馬尾孩男穿戴拿製校水身看圖片照單肩"
)
HANGUL = (
    "이다는을가의에고하지도로기를은한나리사자아어여서대시수있그인정소머옷치마빨간흰검파란색남모눈미배경해라스보일"
    "주제구전부장상과만게들안조원신교복긴짧바셔츠"
)
DOUBLE = ("gb18030", "cp950", "cp932", "cp949")
WIDE = "[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\ue000-\uf8ff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
SCRIPT = "[\u0370-\u052f]"  # Greek and Cyrillic
IMPROBABLE = (  # what hardly stands side by side, and what each such place costs
    (re.compile(f"(?<=[A-Za-z]){WIDE}"), -3.5),
    (re.compile(f"{WIDE}(?=[A-Za-z])"), -3.5),
    (re.compile(f"(?<=[A-Za-z]){SCRIPT}"), -7.0),
    (re.compile(f"{SCRIPT}(?=[A-Za-z])"), -7.0),
    (re.compile("(?<=[a-zß-ÿ])[À-Þ](?![a-zß-ÿ])|(?<=[а-яё])[А-ЯЁ]"), -4.0),  # a capital at the end of a word
    (re.compile("(?<=[A-Za-z])[¡-¿†‡‰ˆ˜¨‚„](?=[a-z])"), -4.0),  # a sign within a word
    (re.compile("[À-ɏ]{3}"), -4.0),  # letters with marks in a row
)

Cost = Callable[[str], float]


class DecodedText(NamedTuple):
    """A text and the encoding it was read in; and, where that is not sure, how it reads in another."""

    text: str
    encoding: str
    other_text: str | None = None
    other_encoding: str = ""

    @property
    def is_sure(self) -> bool:
        return self.other_text is None


def read_all(contents: Sequence[bytes]) -> list[DecodedText | None]:
    """The texts of files that belong together, such as the captions of a folder; None: no text in any encoding."""
    readings = [unicode_text(data) for data in contents]
    legacy = [at for at, reading in enumerate(readings) if reading is None and not _is_utf16(contents[at])]
    if legacy:
        scores = {at: _scores(contents[at]) for at in _first(legacy, contents)}
        sums = _together(list(scores.values()))
        for at in legacy:
            readings[at] = _read(contents[at], scores[at] if at in scores else _scores(contents[at]), sums)
        encoding = max(sums, key=sums.__getitem__)
        for at, reading in enumerate(readings):
            if reading and encoding in DOUBLE and _is_unicode_by_chance(reading, contents[at], encoding):
                readings[at] = DecodedText(contents[at].decode(encoding), encoding, reading.text, "utf-8")
    return readings


def read(data: bytes) -> DecodedText | None:
    """One text alone."""
    return read_all([data])[0]


def unicode_text(data: bytes) -> DecodedText | None:
    """A text in UTF-8, or in UTF-16 with a byte-order mark or recognisable by its zero bytes; None: it is neither."""
    encoding = "utf-8-sig"
    if data.startswith(UTF16_MARKS):
        encoding = "utf-16"
    elif b"\0" in data:
        encoding = "utf-16-be" if data[::2].count(0) > data[1::2].count(0) else "utf-16-le"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else DecodedText(text, encoding)


def _is_utf16(data: bytes) -> bool:
    return b"\0" in data or data.startswith(UTF16_MARKS)


def _first(legacy: list[int], contents: Sequence[bytes]) -> list[int]:
    """Those that decide for all: the first of them, up to so many bytes."""
    taken, size = [], 0
    for at in legacy:
        if size >= MOST_BYTES:
            break
        taken.append(at)
        size += len(contents[at])
    return taken


def _together(scores: list[dict[str, float]]) -> dict[str, float]:
    """How probable each encoding is for all; no single text speaks overwhelmingly against one."""
    sums = {name: prior for name, (prior, _) in TABLE.items()}
    for own in scores:
        best = max(own.values(), default=0.0)
        for name in sums:
            sums[name] += max(own.get(name, -math.inf) - best, -OVERWHELMING)
    return sums


def _read(data: bytes, own: dict[str, float], sums: dict[str, float]) -> DecodedText | None:
    """One text in the encoding of its folder, unless it is overwhelmingly in another.

    Args:
        own, sums: how probable each encoding is for this text, and for all.
    """
    beyond = sum(byte > 0x7F for byte in data)
    own = {
        name: score + TABLE[name][0]
        for name, score in own.items()
        if score - ASCII * sum(letter < "\x80" for letter in data.decode(name)) >= ABSURD * beyond
    }
    if not own or _damaged_utf8(data) > max(own.values()):
        return None
    chosen, alone = max(sums, key=sums.__getitem__), max(own, key=own.__getitem__)
    margins = sums
    if own[alone] - own.get(chosen, -math.inf) > OVERWHELMING:
        chosen, margins = alone, own
    text = data.decode(chosen)
    for rival in sorted(own, key=lambda name: -margins[name]):
        if rival != chosen and margins[chosen] - margins[rival] < CLOSE and data.decode(rival) != text:
            return DecodedText(text, chosen, data.decode(rival), rival)
    return DecodedText(text, chosen)


def _is_unicode_by_chance(reading: DecodedText, data: bytes, encoding: str) -> bool:
    """Whether a text of a folder in an East Asian encoding is UTF-8 only because its few bytes happen to fit.

    Two bytes of GBK are a letter of UTF-8 at times; Notepad read the word for China Unicom so for years.
    """
    letters = {letter for letter in reading.text if letter > "\x7f"}
    if not letters or reading.encoding != "utf-8-sig" or max(letters) >= "\u0800" or letters <= set(WESTERN):
        return False
    score = _scores(data).get(encoding)
    return score is not None and score > ABSURD * sum(byte > 0x7F for byte in data) + ASCII * len(data)


def _damaged_utf8(data: bytes) -> float:
    """How probable it is that a text is UTF-8 of which a few bytes were lost."""
    letters = [letter for letter in data.decode("utf-8", errors="replace") if letter > "\x7f"]
    costs = (
        {"�": NEVER}
        | {letter: -5.7 for letter in HANZI + HANZI_TRADITIONAL + KANA + HANGUL}
        | dict.fromkeys(WESTERN, LATIN)
    )
    rest = sum(byte < 0x80 for byte in data) * ASCII
    return rest + sum(costs.get(letter, -8.9 if "\u4e00" <= letter <= "\u9fff" else -10.0) for letter in letters) - 3


def _scores(data: bytes) -> dict[str, float]:
    """How probable a text is in each encoding that it can be in."""
    scores = {}
    for name, (_, cost) in TABLE.items():
        try:
            text = data.decode(name)
        except UnicodeDecodeError:
            continue
        score = sum(cost(letter) * count for letter, count in Counter(text).items())
        score += sum(penalty * len(pattern.findall(text)) for pattern, penalty in IMPROBABLE)
        if name == "cp932" and not re.search("[\u3041-\u30fa]", text):
            score -= 4  # Japanese without any kana
        scores[name] = score
    return scores


# ---- What a letter costs ----


def _single(usual: str, each: float, rarer: str = "") -> Cost:
    """Of an encoding of one byte a letter, whose languages write these small letters; the capitals are rarer."""
    capitals = set((usual + rarer).upper())

    @lru_cache(maxsize=1000)
    def cost(letter: str) -> float:
        if letter < "\x80":
            return ASCII
        if letter in usual:
            return each
        if letter in rarer:
            return each - 1.5
        if letter in capitals:
            return each - 2.2
        if letter in TYPOGRAPHY:
            return PUNCTUATION
        if letter in SIGNS:
            return PUNCTUATION - 2
        return NEVER if "\u2500" <= letter < "\u2600" else ODD  # box drawings

    return cost


def _double(standard: str, usual: str, common: range, costs: tuple[float, float]) -> Cost:
    """Of an East Asian encoding.

    Args:
        standard: the narrower standard, beyond which hardly anybody writes.
        usual: letters that make up half of what people write.
        common: first bytes of its common letters there.
        costs: of the usual, and of the common.
    """

    @lru_cache(maxsize=10_000)
    def cost(letter: str) -> float:
        if letter < "\x80":
            return ASCII
        try:
            lead, *rest = letter.encode(standard)
        except UnicodeEncodeError:
            return -10.5 if letter > "\uffff" else NEVER  # four bytes that are hardly anything else
        if len(rest) > 1:
            return NEVER
        if letter in "，。、！？：；“”（）《》·…—「」~ー":
            return PUNCTUATION
        if letter in usual:
            return costs[0]
        if "\uff61" <= letter <= "\uff9f":  # half as wide
            return ODD
        return costs[1] if lead in common else ODD if lead < min(common) else -12.2

    return cost


KANA = "".join(map(chr, range(0x3041, 0x30FB)))
LATIN, LETTERS = -5.0, -3.6  # a letter with a mark among English ones; a letter of a script of its own
TABLE: dict[str, tuple[float, Cost]] = {  # encoding -> how probable it is beforehand, and the cost of a letter
    "gb18030": (0, _double("gb2312", HANZI, range(0xB0, 0xD8), (-5.7, -8.9))),
    "cp950": (-3, _double("big5", HANZI_TRADITIONAL, range(0xA4, 0xC7), (-5.7, -9.3))),
    "cp932": (-3, _double("shift_jis", KANA, range(0x88, 0x98), (-5.5, -8.7))),
    "cp949": (-4, _double("euc_kr", HANGUL, range(0xB0, 0xC9), (-5.0, -8.4))),
    "cp1252": (0, _single(WESTERN, LATIN, "ëìòùœ")),
    "cp1250": (-8, _single("ąćęłńóśźżáčďéěíňřšťúůýžăâîşţöüőűßäç", LATIN)),
    "cp1254": (-8, _single("ğışçöüâîûé", LATIN)),
    "cp1251": (-4, _single("абвгдежзийклмнопрстуфхцчшщъыьэюяёіїєґ", LETTERS)),
    "koi8_r": (-6, _single("абвгдежзийклмнопрстуфхцчшщъыьэюяё", LETTERS)),
    "cp1253": (-6, _single("αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώ", LETTERS)),
}
