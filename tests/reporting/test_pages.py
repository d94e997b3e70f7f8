"""Pages for a person to look at: text stays text, one file needs nothing else, and what cannot be shown is named."""

import base64
import io
import os
import re
from html.parser import HTMLParser
from string import Formatter

import numpy as np
import pytest
from jinja2 import UndefinedError, nodes
from markupsafe import Markup
from PIL import Image

from library.messages import UserError, set_language
from library.reporting import pages

NASTY = """<b onclick='x()'>"5" & 'six'</b>"""  # as a folder may be called on Linux


class Reader(HTMLParser):
    """What a browser makes of it: the text, every tag with its attributes, and tags that are not closed."""

    VOID = {"meta", "img", "br", "input"}

    def __init__(self, text: str):
        super().__init__()
        self.text, self.tags, self.open = "", [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def shown(html_text: str) -> Image.Image:
    """The image of a figure."""
    (image,) = Reader(html_text).all("img")
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def made(body: str, **values) -> str:
    """What a template makes that may use all macros of parts.html."""
    macros = "{% from 'parts.html' import facts, figure, finding, images, more, table %}"
    return pages.environment().from_string(macros + body).render(values)


def figure(*what, **more) -> str:
    return made("{{ figure(one) }}", one=pages.figure_of(*what, **more))


def whole_page() -> str:
    image = pages.figure_of(Image.new("RGB", (30, 20), "red"), NASTY, NASTY, [pages.Box(0.1, 0.2, 0.3, 0.4, NASTY)])
    return made(
        """{% extends "base.html" %}
        {% block title %}{{ nasty }}{% endblock %}
        {% block body %}
        <p>{{ nasty }}</p>
        {{ facts({nasty: nasty, "images": 12}) }}
        {{ table([nasty, "number"], [[nasty, 3], ["b", 4.5]]) }}
        {{ finding("red", nasty, nasty) }}
        {{ images([image]) }}
        {% call figure(image) %}{{ nasty }}{% endcall %}
        {% endblock %}""",
        nasty=NASTY,
        image=image,
    )


def test_text_is_shown_as_it_is_and_never_becomes_markup():
    read = Reader(whole_page())
    assert read.open == []
    assert not read.all("b") or all("onclick" not in attributes for attributes in read.all("b"))
    assert read.text.count(NASTY) == 13
    for image in read.all("img"):
        assert image["alt"] == NASTY
    frames = [attributes for attributes in read.all("div") if attributes.get("class") == "box"]
    assert len(frames) == 2
    assert frames[0]["title"] == NASTY
    assert frames[0]["style"] == "left:10.00%;top:20.00%;width:30.00%;height:40.00%"


def test_what_is_markup_already_is_not_escaped_again():
    link = Markup('<a href="other.html">other</a>')
    for body in (
        "{{ facts({'see': link}) }}",
        "{{ table([link], [[link]]) }}",
        "{{ finding('green', link, link) }}",
        "{% call figure(one) %}{{ link }}{% endcall %}",
    ):
        page = made(body, link=link, one=pages.Figure(""))
        assert "&lt;a" not in page
        assert link in page


def test_a_name_that_a_template_spells_wrong_is_an_error():
    with pytest.raises(UndefinedError):
        made("<p>{{ nmae }}</p>", name="x")
    with pytest.raises(UndefinedError):
        made("<p>{{ one.nmae }}</p>", one=pages.Figure(""))


def test_numbers_stand_to_the_right_and_are_grouped():
    page = made("{{ table(head, rows) }}", head=["name", "count", "both"], rows=[["a", 12345, "x"], ["b", 7, 5]])
    assert "<td class=number>12,345</td>" in page
    assert "<td>5</td>" in page  # its column holds text too
    assert "<td>True</td>" in made("{{ table(['is'], [[true]]) }}")
    assert "<tr>" not in made("{{ table(['empty'], []) }}").partition("<tbody>")[2]


def test_a_list_that_was_changed_is_shown_in_one():
    assert pages.difference(["a", "b", "c"], ["a", "d", "c", "e"]) == [
        ("a", "none"), ("b", "removed"), ("d", "added"), ("c", "none"), ("e", "added")
    ]  # fmt: skip


def test_a_page_needs_no_other_file_and_no_network():
    written = whole_page()
    assert not re.search(r"""(?:src|href)=(?!"data:)|url\(|@import|https?:|<link|<script""", written)
    assert 'name="viewport"' in written  # readable on a phone


@pytest.mark.parametrize(("language", "words"), [("en", "fix this"), ("zh", "必须解决")])
def test_a_page_speaks_the_users_language(language, words):
    set_language(language)
    body = "{% extends 'base.html' %}{% block title %}t{% endblock %}{% block body %}"
    written = made(
        body + "{{ finding('red', 'x') }}{{ images(figures) }}{% endblock %}", figures=[pages.Figure("")] * 121
    )
    assert words in written
    assert {"en": 'lang="en"', "zh": 'lang="zh-CN"'}[language] in written
    assert {"en": "and 1 more", "zh": "另有 1 张未显示"}[language] in written


def test_of_very_many_images_only_the_first_are_shown_and_that_is_said():
    figures = [pages.figure_of(Image.new("L", (2, 2)), f"{number}.png") for number in range(pages.MOST_IMAGES + 5)]
    read = Reader(made("{{ images(figures) }}", figures=figures))
    assert len(read.all("figure")) == pages.MOST_IMAGES
    assert "and 5 more" in read.text
    assert "more" not in Reader(made("{{ images(figures) }}", figures=figures[: pages.MOST_IMAGES])).text
    assert "and 7 more" in Reader(made("{{ images(figures, total=10) }}", figures=figures[:3])).text


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40), None])
def test_an_image_that_cannot_be_read_gives_its_name_alone(tmp_path, content):
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    read = Reader(figure(path, path.name, "skipped"))
    assert not read.all("img")
    assert read.text.split() == ["broken.pngskipped"]


def test_a_postscript_file_called_png_is_not_given_to_ghostscript(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("ran"))
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    assert "<img" not in figure(path, "a")


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "gif", "tif"])
def test_usual_formats_are_shown(tmp_path, ending):
    Image.new("RGB", (40, 30)).save(tmp_path / f"a.{ending}")
    assert shown(figure(tmp_path / f"a.{ending}")).size == (40, 30)


def test_files_are_shown_upright_small_and_with_their_transparency(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (2000, 1000), "blue").save(tmp_path / "phone.jpg", exif=exif)
    thumbnail = shown(figure(tmp_path / "phone.jpg"))
    assert thumbnail.size == (160, 320)
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert shown(figure(clear)).mode == "RGBA"
    assert shown(figure(Image.new("CMYK", (8, 8)))).convert("RGB").getpixel((4, 4)) == (255, 255, 255)


def test_sixteen_bit_greys_keep_their_shades(tmp_path):
    Image.fromarray(np.full((16, 16), 32896, np.uint16)).save(tmp_path / "grey.png")
    level = shown(figure(tmp_path / "grey.png")).convert("L").getpixel((8, 8))
    assert abs(level - 128) <= 2


def test_an_image_given_in_memory_is_left_as_it_is():
    image = Image.new("RGB", (1000, 500))
    figure(image)
    assert image.size == (1000, 500)


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = pages.write(tmp_path / "new" / "page.html", "first \udcff")  # a name that is no UTF-8
    assert path.read_text(encoding="utf-8") == "first ?"

    def breaks(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", breaks)
    with pytest.raises(UserError) as caught:
        pages.write(path, "second")
    assert str(caught.value) == f"{path} cannot be written (No space left on device). Choose another output_dir"
    assert path.read_text(encoding="utf-8") == "first ?"
    assert [entry.name for entry in path.parent.iterdir()] == ["page.html"]


def test_a_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .* Choose another output_dir"):
        pages.write(tmp_path / "file" / "deeper" / "page.html", "x")


def test_an_interruption_leaves_no_half_file(tmp_path, monkeypatch):
    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pages.write(tmp_path / "page.html", "x")
    assert list(tmp_path.iterdir()) == []


# ---- All templates ----

TEMPLATES = sorted(path.name for path in pages.TEMPLATES.glob("*.html"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_says_the_same_in_both_languages(name):
    tree = pages.environment().parse((pages.TEMPLATES / name).read_text(encoding="utf-8"))
    for call in tree.find_all(nodes.Call):
        if not isinstance(call.node, nodes.Name) or call.node.name != "say":
            continue
        english, chinese = (text.value for text in call.args)
        values = {keyword.key for keyword in call.kwargs}
        for text in (english, chinese):
            assert {field for _, field, _, _ in Formatter().parse(text) if field} <= values, text
        used = english + chinese
        assert all("{" + key in used for key in values), english
        assert not re.search("[\u4e00-\u9fff]", english), english


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_template_trusts_what_it_is_given(name):
    """What is markup is marked so where it is made, and nowhere else."""
    text = (pages.TEMPLATES / name).read_text(encoding="utf-8")
    assert not re.search(r"\|\s*safe|autoescape|https?:", text)
