"""Texts in any encoding: decided for a folder together, and said where that is not sure."""

import pytest

from library import text_encoding
from library.text_encoding import read, read_all


@pytest.mark.parametrize(
    ("encoding", "texts"),
    [
        ("cp1252", ["Pokémon"]),
        ("cp1252", ["woman’s hair"]),
        ("cp1252", ["a woman’s dress, “quoted” – café"]),
        ("cp1252", ["mädchen, größe", "niña, ¿qué?", "ação", "père Noël", "École, Ångström", "20°C, ©artist"]),
        ("gb18030", ["女孩"]),
        ("gb18030", ["sks女孩, 红色头发", "帽子", "嫦娥, 敦煌飞天"]),
        ("gb18030", ["𠀀 rare"]),
        ("cp950", ["一個女孩, 紅色頭髮", "帽子", "藍天白雲"]),
        ("cp932", ["女の子, 赤い髪", "少女、制服、微笑", "赤髪"]),
        ("cp949", ["소녀, 빨간 머리", "교복, 여자"]),
        ("cp1251", ["девушка, рыжие волосы", "кот"]),
        ("koi8_r", ["девушка, рыжие волосы"]),
        ("cp1250", ["dziewczyna, długie włosy, uśmiech"]),
        ("cp1253", ["κορίτσι, μαλλιά"]),
    ],
)
def test_a_folder_is_read_in_the_encoding_of_its_language(encoding, texts):
    readings = read_all([text.encode(encoding) for text in texts])
    assert [(reading.text, reading.encoding) for reading in readings] == [(text, encoding) for text in texts]
    assert all(reading.is_sure for reading in readings)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_unicode_proves_itself_beside_whatever_else(encoding):
    text = "café, girl, red hair"
    first, second = read_all([text.encode(encoding), "Pokémon".encode("cp1252")])
    assert first.text == text
    assert first.is_sure
    assert second.text == "Pokémon"


def test_what_is_ambiguous_alone_is_decided_by_the_others():
    alone = read("교복".encode("cp949"))
    assert not alone.is_sure
    assert {alone.text, alone.other_text} == {"교복", "背汗"}
    among = read_all([text.encode("cp949") for text in ("교복", "소녀, 빨간 머리, 긴 머리")])[0]
    assert (among.text, among.is_sure) == ("교복", True)


def test_one_text_of_another_encoding_is_read_in_its_own():
    texts = {"café": "cp1252", "Pokémon": "cp1252", "一个女孩, 红色头发, 站着": "gb18030", "woman’s": "cp1252"}
    readings = read_all([text.encode(encoding) for text, encoding in texts.items()])
    assert {reading.text: reading.encoding for reading in readings} == texts


def test_two_bytes_that_are_unicode_by_chance_are_not_sure_among_others():
    """The bytes of 小 in GBK are a Cyrillic letter in UTF-8."""
    small, _, cafe = read_all(["小".encode("gbk"), "一个女孩, 红色头发".encode("gbk"), "café".encode()])
    assert (small.text, small.other_text, small.other_encoding) == ("小", "С", "utf-8")
    assert (cafe.text, cafe.is_sure) == ("café", True)
    assert read("小".encode("gbk")).text == "С"  # nothing speaks against it


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0",
        b"\xff\xfe\x00",
        b"abc\x81",
        "Pokémon".encode("cp437"),  # of DOS
        "红色头发, 站着".encode()[:-1],  # UTF-8 that was cut off
    ],
)
def test_what_is_no_text_that_we_know_is_not_guessed(data):
    assert read(data) is None


def test_every_encoding_has_a_name():
    assert set(text_encoding.TABLE) == set(text_encoding.NAMES)
