"""Which views and poses a set has, and what should be erased from it, as far as tags tell.

A pose that no image shows cannot be learned. To have another view known: add a row to VIEWS.
"""

from library.data.image_names import some
from library.data.tag_statistics import Advice, TagStatistics, spelled
from library.messages import plural, say

LEAST_IMAGES, LEAST_TAGGED = 10, 0.5  # below, tags say too little: images with a caption; their share that tells a view
VIEWS = {  # what is missing: tags that tell it, as danbooru and its taggers write them
    ("from the front", "正面"): ("looking at viewer", "facing viewer", "straight-on", "from front", "front view"),
    ("from behind", "背面"): ("from behind", "facing away", "back view", "back"),
    ("from the side", "侧面"): ("from side", "profile", "side view", "looking to the side"),
    ("standing", "站姿"): ("standing", "walking", "running"),
    ("sitting", "坐姿"): ("sitting", "seiza", "wariza", "kneeling", "squatting", "on chair"),
    ("full body", "全身"): ("full body", "wide shot"),
    ("close-up", "特写"): ("close-up", "portrait", "upper body", "face"),
}
PHONES = ("holding phone", "phone", "cellphone", "smartphone", "selfie", "taking picture")
MIRRORS = ("mirror", "mirror selfie", "reflection")


def advice(statistics: TagStatistics) -> list[Advice]:
    """Views that no image shows, and images with a phone or a mirror; nothing where the captions tell no views."""
    return [*_missing_views(statistics), *_in_the_way(statistics)]


def _images_with(statistics: TagStatistics, tags: tuple[str, ...]) -> int:
    """A bit for each image that has one of the tags."""
    images = 0
    for tag in tags:
        if known := statistics.tags.get(spelled(tag)):
            images |= known.images
    return images


def _missing_views(statistics: TagStatistics) -> list[Advice]:
    images = {view: _images_with(statistics, tags) for view, tags in VIEWS.items()}
    telling = 0
    for own in images.values():
        telling |= own
    total = statistics.total()
    if total < LEAST_IMAGES or telling.bit_count() < LEAST_TAGGED * total:
        return []
    missing = [view for view, own in images.items() if not own]
    if not missing:
        return []
    return [Advice("amber", *_no_image_shows(missing), tuple(VIEWS[view][0] for view in missing))]


def _in_the_way(statistics: TagStatistics) -> list[Advice]:
    found = []
    for tags, text in ((PHONES, _phone), (MIRRORS, _mirror)):
        names = statistics.names(_images_with(statistics, tags))
        if names:
            found.append(Advice("amber", *text(len(names), names), tags[:1]))
    return found


# ---- what is said ----


def _no_image_shows(missing: list[tuple[str, str]]) -> tuple[str, str]:
    english, chinese = ", ".join(view[0] for view in missing), "、".join(view[1] for view in missing)
    return (
        say(f"as far as the tags tell, no image shows: {english}", f"从标签看，没有一张图片是：{chinese}"),
        say(
            "What the set lacks is not learned. Add such images if you want to draw them",
            "训练集里没有的姿势和视角学不会。需要的话，请补充这样的图片",
        ),
    )


def _phone(count: int, names: list[str]) -> tuple[str, str]:
    return (
        say(
            f"{plural(count, 'image has', 'images have')} a phone, as the tags tell: {some(names)}",
            f"从标签看，{count} 张图片里有手机：{some(names)}",
        ),
        say(
            "A phone before a face is learned with it: erase the face there (regions in prepare_images.py)",
            "挡在脸前的手机会被一起学进去：请把那张脸连手机一起擦除（prepare_images.py 的 regions）",
        ),
    )


def _mirror(count: int, names: list[str]) -> tuple[str, str]:
    return (
        say(
            f"{plural(count, 'image has', 'images have')} a mirror, as the tags tell: {some(names)}",
            f"从标签看，{count} 张图片里有镜子：{some(names)}",
        ),
        say(
            "Erase its frame and what is around it (regions in prepare_images.py): the two sides don't fit together",
            "请擦除镜框和镜框以外的部分（prepare_images.py 的 regions）：镜子内外的画面不连续",
        ),
    )
