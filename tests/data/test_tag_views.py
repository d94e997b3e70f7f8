"""Which poses and views a set lacks, as far as its tags tell."""

import pytest

from library.data import tag_statistics, tag_views
from library.data.tag_statistics import Captioned
from library.messages import set_language


def advice(*captions):
    images = [Captioned("6_dress", f"{at}.png", caption) for at, caption in enumerate(captions)]
    return tag_views.advice(tag_statistics.count(images))


def test_views_that_no_image_shows_are_named():
    front, side = ["dress, looking at viewer, standing, full body"] * 8, ["dress, from_side, upper body"] * 4
    (one,) = advice(*front, *side)
    assert one.text == "as far as the tags tell, no image shows: from behind, sitting"
    assert "not learned" in one.cure
    assert advice(*front, *side, "dress, from behind", "dress, sitting") == []
    set_language("zh")
    assert advice(*front, *side)[0].text == "从标签看，没有一张图片是：背面、坐姿"


@pytest.mark.parametrize(
    "captions", [["dress, standing"] * 9, ["dress, red"] * 12, ["dress, standing"] * 5 + ["a"] * 6]
)
def test_nothing_is_said_of_few_images_or_where_captions_tell_no_views(captions):
    assert advice(*captions) == []


def test_a_phone_and_a_mirror_are_named_with_their_images():
    phone, mirror = advice("dress, holding phone", "dress, mirror, selfie", "dress")
    assert phone.text == "2 images have a phone, as the tags tell: 0.png, 1.png"
    assert mirror.text == "1 image has a mirror, as the tags tell: 1.png"
    assert advice(*["dress, selfie"] * 7)[0].text.endswith("4.png and 2 more")
    assert "regions" in phone.cure
    assert "frame" in mirror.cure
