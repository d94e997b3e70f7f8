"""What the tags of a set will do in training: how often each stands there, and what follows from that.

What an image shows is learnt under the words that stand beside it whenever it shows it. So how often a tag stands
there decides where its feature lives:

    on nearly every image (ALWAYS)    on that word. Deleted everywhere, the feature moves to the trigger word
    on some (SOMETIMES to ALWAYS)       on that word, and it stays changeable: images without it show the difference
    on one or two (FEW)                 hardly anywhere

Deleting is advised for what the subject itself is (hair, eyes, clothes) only. A background, pose or view that is on
every image must stay a word, else it would belong to the subject from then on. Which tag is which is decided by the
lists below, of danbooru's words; what is in none of them counts as the subject's.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from library.data import captions
from library.data.folders import some
from library.messages import plural, say

ALWAYS = 0.9  # a share of the images
SOMETIMES = 0.2
FEW = 2  # images
TOKEN_LIMITS = (75, 150, 225)  # what max_token_length may be
SHOWN = 12  # tags named in one finding

SCENE = {  # what is not the subject itself, in danbooru's words
    "number": """
        solo, solo focus, multiple girls, multiple boys, multiple others, everyone, couple, crowd, group, no humans,
        people
    """,
    "quality": """
        masterpiece, best quality, high quality, normal quality, low quality, worst quality, amazing quality,
        highres, absurdres, lowres, incredibly absurdres, very aesthetic, aesthetic, newest, recent, official art,
        scan, jpeg artifacts, general, sensitive, questionable, explicit, safe, nsfw, sfw, rating:safe,
        rating:general
    """,
    "medium": """
        photo, photorealistic, realistic, photo (medium), monochrome, greyscale, grayscale, sepia, sketch, lineart,
        traditional media, colorful, spot color, high contrast, blurry, blurry foreground, depth of field, bokeh,
        lens flare, film grain, chromatic aberration, motion blur, bloom, border, white border, black border,
        letterboxed, pillarboxed, split screen, comic, 4koma, multiple views, reference sheet, collage, cover,
        still life, scenery, landscape, no text
    """,
    "writing": """
        signature, watermark, text, username, artist name, web address, twitter username, dated, logo,
        copyright name, english text, chinese text, japanese text, korean text, speech bubble, patreon username,
        weibo username
    """,
    "view": """
        portrait, upper body, lower body, full body, cowboy shot, close-up, face, head only, wide shot,
        very wide shot, bust, profile, facing viewer, facing away, facing to the side, straight-on, pov,
        dutch angle, fisheye, perspective, foreshortening, cropped, cropped legs, cropped torso, head out of frame,
        feet out of frame, out of frame, back, selfie, mirror selfie, reflection, mirror, panorama, portrait format,
        landscape format, square format
    """,
    "pose": """
        standing, sitting, lying, kneeling, squatting, crouching, walking, running, jumping, flying, floating,
        leaning, leaning forward, leaning back, leaning to the side, bent over, all fours, on back, on side,
        on stomach, seiza, wariza, indian style, crossed legs, crossed arms, contrapposto, dancing, stretching,
        arched back, head tilt, head rest, standing on one leg, leg up, legs up, knees up, spread legs,
        legs together, arm up, arms up, arm behind back, arms behind back, arm behind head, arms behind head,
        arms at sides, outstretched arm, outstretched arms, outstretched hand, spread arms, own hands together,
        hand up, hands up, clenched hand, clenched hands, v, double v, peace sign, thumbs up, pointing,
        pointing at viewer, waving, salute, fighting stance, pose, holding, holding phone, reaching,
        reaching towards viewer, hug, carrying, reclining, upside-down, back-to-back, dynamic pose, action, eating,
        drinking, reading, sleeping, singing
    """,
    "expression": """
        smile, light smile, grin, smirk, laughing, open mouth, closed mouth, parted lips, :d, :o, :3, :p, ;d, ^ ^,
        > <, closed eyes, one eye closed, half-closed eyes, wink, blush, light blush, crying, tears, angry, annoyed,
        frown, sad, surprised, expressionless, serious, embarrassed, shy, happy, nervous, pout, tongue, tongue out,
        teeth, clenched teeth, expression, sweat, sweatdrop, looking at viewer
    """,
    "surroundings": """
        indoors, outdoors, day, night, evening, sunset, sunrise, dusk, dawn, twilight, sky, blue sky, night sky,
        cloud, clouds, cloudy sky, sun, moon, full moon, star (sky), starry sky, rain, snow, snowing, wind, fog,
        sunlight, shadow, backlighting, light rays, dappled sunlight, summer, winter, autumn, spring,
        spring (season), autumn leaves, petals, falling petals, cherry blossoms, tree, trees, bare tree, palm tree,
        grass, flower field, field, forest, nature, park, garden, mountain, hill, river, lake, ocean, sea, beach,
        water, sand, horizon, road, street, sidewalk, city, cityscape, city lights, town, village, building,
        skyscraper, house, bridge, railing, fence, stairs, wall, brick wall, window, door, doorway, ceiling, floor,
        wooden floor, tiles, tile floor, room, bedroom, bathroom, kitchen, living room, classroom, school, office,
        library, cafe, restaurant, shop, stage, studio, photo studio, gym, pool, train, train station,
        train interior, car, car interior, bus, bed, on bed, bed sheet, pillow, curtains, couch, on couch, chair,
        on chair, bench, table, desk, lamp, potted plant, plant, carpet, rug, poster (object), ground vehicle,
        motor vehicle, ruins, rooftop, balcony, alley, crosswalk, lamppost, power lines, airplane, bird, butterfly,
        festival
    """,
    "place in the picture": """
        simple background, no background, backdrop, gradient, abstract, pattern, top, bottom, left, right, center,
        large, small
    """,
}
SCENE_WORDS = frozenset(word.strip() for words in SCENE.values() for word in re.split("[,\n]", words) if word.strip())
SCENE_PATTERNS = re.compile(
    r"\d+\+?(girl|boy|other|people|man|woman)s?\+?|.* background|.*背景|from (side|behind|above|below|outside|front)|"
    r"looking .+|facing .+|against .+|.* (view|shot|angle|lighting|focus|format|quality|weather|season)|"
    r"(own |another's )?(hand|arm|foot|feet|leg)s? (on|in|over|to|between|under|behind|around|above|up|down) .+|"
    r"(sitting|standing|lying|leaning|kneeling) (on|in|at|against) .+|rating:.+|score \d.*|year \d{4}"
)


# ---- counting ----


class Captioned(NamedTuple):
    """An image as the tags see it."""

    folder: str  # its concept's: "10_mytag"; images of one folder are one set
    name: str  # as a person would write it
    caption: str | None  # its first line; None: there is no caption


@dataclass(frozen=True)
class Tag:
    """One tag in all its spellings."""

    text: str  # its most frequent spelling
    spellings: dict[str, int]  # as written -> images
    images: int  # a bit for each image that has it, the first image's the lowest


@dataclass(frozen=True)
class TagStatistics:
    """Who has which tag. Sets of images are numbers with a bit for each."""

    images: list[Captioned]
    folders: dict[str, int]  # folder -> its images that have a caption
    tags: dict[str, Tag]  # `spelled` -> tag; the most frequent first, then by name

    def count(self, tag: Tag, folder: str | None = None) -> int:
        """Images that have it, of all or of one folder."""
        return (tag.images & self._of(folder)).bit_count()

    def total(self, folder: str | None = None) -> int:
        """Images with a caption."""
        return self._of(folder).bit_count()

    def share(self, tag: Tag, folder: str | None = None) -> float:
        """Of the images with a caption those that have it, 0 to 1."""
        return self.count(tag, folder) / max(1, self.total(folder))

    def missing(self, tag: Tag, folder: str | None = None) -> list[str]:
        """Names of the images that have a caption and not this tag."""
        return self.names(self._of(folder) & ~tag.images)

    def names(self, images: int) -> list[str]:
        return [image.name for at, image in enumerate(self.images) if images >> at & 1]

    def _of(self, folder: str | None) -> int:
        if folder is not None:
            return self.folders[folder]
        together = 0
        for images in self.folders.values():
            together |= images
        return together


@lru_cache(maxsize=100_000)
def spelled(tag: str) -> str:
    """A tag in the one spelling that decides whether two are the same.

    `Long_Hair` and `(long hair:1.2)` are `long hair`, `\\(` is `(`.
    """
    plain = unicodedata.normalize("NFKC", captions.unweighted(tag)).casefold().replace("\\", "").replace("_", " ")
    return " ".join(plain.split())


def is_scene(tag: str) -> bool:
    """Whether a tag is about count, quality, view, pose, expression or surroundings, and not about the subject."""
    plain = spelled(tag)
    return plain in SCENE_WORDS or bool(SCENE_PATTERNS.fullmatch(plain))


def is_sentence(caption: str) -> bool:
    """Whether a caption is written as a sentence: tags have few words and no full stop."""
    parts = captions.tags(caption)
    words = [len(part.split()) for part in parts]
    ends = caption.rstrip().endswith((".", "。", "!", "！"))
    return bool(parts) and (max(words) > 8 or (ends and max(words) > 3) or "。" in caption)


def has_word(caption: str, word: str) -> bool:
    """Whether a word or phrase stands in a caption, as a tag or within a sentence; not as a part of a longer word."""
    return bool(_whole(spelled(word)).search(spelled(caption)))


@lru_cache(maxsize=100)
def _whole(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])")


def count(images: Iterable[Captioned]) -> TagStatistics:
    """Count every tag of a set."""
    images = list(images)
    folders: dict[str, int] = {}
    bits: dict[str, int] = {}
    spellings: dict[str, dict[str, int]] = {}
    for at, image in enumerate(images):
        folders.setdefault(image.folder, 0)
        if image.caption is None:
            continue
        folders[image.folder] |= 1 << at
        for text in dict.fromkeys(captions.unescaped(tag.text) for tag in captions.weighted_tags(image.caption)):
            key = spelled(text)
            bits[key] = bits.get(key, 0) | 1 << at
            written = spellings.setdefault(key, {})
            written[text] = written.get(text, 0) + 1
    ordered = sorted(bits, key=lambda key: (-bits[key].bit_count(), key))
    tags = {key: Tag(max(spellings[key], key=spellings[key].__getitem__), spellings[key], bits[key]) for key in ordered}
    return TagStatistics(images, folders, tags)


# ---- what follows ----


class Advice(NamedTuple):
    """One thing to know about the tags."""

    level: str  # "red": will go wrong, "amber": worth a look, "green": good to know
    text: str
    cure: str = ""  # what to do
    tags: tuple[str, ...] = ()  # which it is about


def fate(statistics: TagStatistics, tag: Tag, word: str | None, folder: str | None = None) -> str:
    """What will become of one tag in training, in one line.

    Args:
        word: the trigger word of those images; None: there is none.
        folder: only its images count.
    """
    share, number = statistics.share(tag, folder), statistics.count(tag, folder)
    own = f"`{word}`" if word else say("the trigger word", "触发词")
    if word and spelled(word) == spelled(tag.text):
        return say("the trigger word", "触发词")
    if share >= ALWAYS and is_scene(tag.text):
        return say(
            "scene, pose or view: stays on this word, so keep it; if deleted, it becomes part of the subject",
            "画面、姿势或视角：留在这个词上，请保留；删掉就会变成主体的一部分",
        )
    if share >= ALWAYS:
        return say(
            f"the feature stays on this tag; delete it to move the feature to {own}",
            f"特征留在这个词上；删除它，特征才会转移到 {own} 上",
        )
    if number <= FEW and share < SOMETIMES:
        return say("little effect: on too few images", "作用很小：带它的图太少")
    if share < SOMETIMES:
        return say("stays controllable, but weak: on few images", "可自由控制，但图少，学得较弱")
    return say("stays controllable: include it or leave it out", "可自由控制：写上就有，不写就没有")


def advice(
    statistics: TagStatistics,
    words: Mapping[str, str | None],
    *,
    is_everyday_word: Callable[[str], bool] | None = None,
    token_counts: Callable[[list[str]], list[int]] | None = None,
) -> list[Advice]:
    """Everything worth knowing about the tags of a set, the most urgent first.

    Args:
        words: folder -> its trigger word; None where there is none.
        is_everyday_word: whether the base model's tokenizer knows a word, so that it means something already.
        token_counts: of each caption, its tokens.
    """
    found: list[Advice] = []
    found += about_language((image.caption or "" for image in statistics.images), words.values())
    found += _about_captions(statistics, words)
    found += about_words(statistics, words, is_everyday_word)
    for folder in statistics.folders:
        if statistics.total(folder):
            found += _about_shares(statistics, folder, words.get(folder))
    found += _about_spellings(statistics)
    if token_counts:
        found += _about_lengths(statistics, token_counts)
    return sorted(found, key=lambda one: ("red", "amber", "green").index(one.level))


def about_language(texts: Iterable[str], words: Iterable[str | None]) -> list[Advice]:
    """Whether captions or trigger words are in another script than the text encoders of Stable Diffusion know.

    Args:
        texts: the captions.
        words: the trigger words.
    """
    texts = [text for text in texts if text]
    written = [word for word in dict.fromkeys(words) if word and captions.foreign_script(word)]
    other = [tag for text in texts if (tag := _foreign_tag(text, written))]
    if not other and not written:
        return []
    scripts = [captions.foreign_script(text) for text in (other or written)]
    level = "red" if 2 * len(other) >= len(texts) > 0 or not other else "amber"
    script = max(scripts, key=scripts.count) or ("", "")
    return [Advice(level, *_not_english(other, len(texts), written, script))]


def _foreign_tag(text: str, words: Iterable[str]) -> str | None:
    """The first tag in another script, beside the trigger words."""
    own = {spelled(word) for word in words}
    return next((tag for tag in captions.tags(text) if spelled(tag) not in own and captions.foreign_script(tag)), None)


def _about_captions(statistics: TagStatistics, words: Mapping[str, str | None]) -> list[Advice]:
    """Captions that are missing, hold nothing but the trigger word, or no tags."""
    found = []
    bare = []
    for image in statistics.images:
        own = spelled(words.get(image.folder) or "")
        if all(spelled(tag) == own for tag in captions.tags(image.caption or "")):
            bare.append(image.name)
    if bare:
        total, names = len(statistics.images), some(bare)
        found.append(
            Advice(
                "amber",
                say(
                    f"{len(bare)} of {plural(total, 'image')} {'has' if len(bare) == 1 else 'have'} no tags besides "
                    "the "
                    f"trigger word: {names}",
                    f"{total} 张图片中有 {len(bare)} 张除触发词外没有标签：{names}",
                ),
                say(
                    "Tag them with tag_images.py: everything in an untagged image is learned under the trigger word",
                    "请用 tag_images.py 打标签：没有标签的图，画面里的一切都会被学到触发词上",
                ),
            )
        )
    chinese = [image.name for image in statistics.images if "，" in (image.caption or "")]
    if chinese:
        found.append(
            Advice(
                "amber",
                say(
                    f"{plural(len(chinese), 'caption contains', 'captions contain')} Chinese commas, which don't "
                    f"separate tags: {some(chinese)}",
                    f"{len(chinese)} 个标注文件含中文逗号，不能分隔标签：{some(chinese)}",
                ),
                say(
                    "edit_tags.py replaces ， with , when it applies changes",
                    "用 edit_tags.py 执行一次，会把 ， 换成英文 ,",
                ),
            )
        )
    sentences = [image.name for image in statistics.images if is_sentence(image.caption or "")]
    if sentences:
        found.append(
            Advice(
                "green",
                say(
                    f"{plural(len(sentences), 'caption looks like a sentence', 'captions look like sentences')}: "
                    f"{some(sentences)}. Only comma-separated tags "
                    "are counted here",
                    f"{len(sentences)} 个标注文件像是句子：{some(sentences)}。这里只统计逗号分隔的部分",
                ),
            )
        )
    return found


def about_words(
    statistics: TagStatistics, words: Mapping[str, str | None], is_everyday_word: Callable[[str], bool] | None
) -> list[Advice]:
    """Whether each trigger word stands where it must, only there, and is new to the base model."""
    found = []
    for word in dict.fromkeys(word for word in words.values() if word):
        own = {folder for folder, its in words.items() if its == word}
        texts = [(image, image.caption or "") for image in statistics.images if image.folder in own]
        without = [image.name for image, text in texts if image.caption is not None and not has_word(text, word)]
        total = sum(statistics.total(folder) for folder in own if folder in statistics.folders)
        value = _quoted("" if len(words) > 1 else word)  # "": each [repeats]_[concept] folder's own word
        cure = say(
            f'Run edit_tags.py over these folders with trigger_word = {value} and action = "apply"',
            f'请对这些目录运行 edit_tags.py，设 trigger_word = {value}、action = "apply"',
        )
        if without and len(without) == total:
            text = say(
                f"`{word}` is in none of the {plural(total, 'caption')}: nothing would be learned for it",
                f"{total} 个标注文件里都没有 `{word}`：什么都不会学到这个词上",
            )
            found.append(Advice("red", text, cure, (word,)))
        elif without:
            text = say(
                f"`{word}` is missing in {len(without)} of {plural(total, 'caption')}: {some(without)}",
                f"{total} 个标注文件中有 {len(without)} 个缺少 `{word}`：{some(without)}",
            )
            found.append(Advice("red", text, cure, (word,)))
        others = [
            image.name
            for image in statistics.images
            if image.folder in words and image.folder not in own and has_word(image.caption or "", word)
        ]
        if others:
            found.append(
                Advice(
                    "amber",
                    say(
                        f"`{word}` is also on {plural(len(others), 'image')} of other concepts: {some(others)}",
                        f"`{word}` 还出现在其他概念的 {len(others)} 张图上：{some(others)}",
                    ),
                    say(
                        "Fine if both are visible there. Otherwise use another word, or delete it there",
                        "如果画面里确实都有则没问题；否则请换一个词，或在那里删掉它",
                    ),
                    (word,),
                )
            )
        longer = [tag.text for key, tag in statistics.tags.items() if key != spelled(word) and has_word(key, word)]
        longer = [text for text in longer if not is_sentence(text)]
        if is_scene(word) or (is_everyday_word and is_everyday_word(word)) or longer:
            reason = (
                say(f"it is part of other tags: {some(longer)}", f"它是其他标签的一部分：{some(longer)}")
                if longer
                else say("the base model already knows this common word", "底模已经认识这个常用词")
            )
            found.append(
                Advice(
                    "amber",
                    say(
                        f"`{word}` already has a meaning, which mixes with what is learned: {reason}",
                        f"`{word}` 本来就有含义，会与学到的内容混在一起：{reason}",
                    ),
                    say("Use a made-up word that is not a tag", "请换用自造的、不与已有标签重复的词"),
                    (word,),
                )
            )
    return found


def _about_shares(statistics: TagStatistics, folder: str, word: str | None) -> list[Advice]:
    """Where the features of one folder's images will live."""
    tags = [tag for tag in statistics.tags.values() if statistics.count(tag, folder)]
    tags = [tag for tag in tags if not word or spelled(tag.text) != spelled(word)]
    tags = [tag for tag in tags if not is_sentence(tag.text)]
    always = [tag for tag in tags if statistics.share(tag, folder) >= ALWAYS]
    return [
        *_few_captions(statistics, folder),
        *_features_on_tags(statistics, folder, [tag for tag in always if not is_scene(tag.text)], word),
        *_forgotten(statistics, folder, [tag for tag in always if statistics.share(tag, folder) < 1]),
        *_inseparable(statistics, folder, tags),
        *_in_order(statistics, folder, tags, [tag for tag in always if is_scene(tag.text)]),
    ]


def _place(statistics: TagStatistics, folder: str) -> tuple[str, str]:
    """How advice on one of several folders begins, in both languages."""
    start = f"{folder}: " if len(statistics.folders) > 1 and folder else ""
    return start, start.replace(": ", "：")


def _few_captions(statistics: TagStatistics, folder: str) -> Iterator[Advice]:
    total = statistics.total(folder)
    if total >= 4:
        return
    start, start_zh = _place(statistics, folder)
    text = say(
        f"{start}{plural(total, 'image')} with a caption: too few for meaningful percentages",
        f"{start_zh}有标注的图片只有 {total} 张，比例没有太大参考价值",
    )
    cure = say("Collect more, usually 20 to 30 per subject", "请多收集一些，一个主体通常需要 20~30 张")
    yield Advice("amber", text, cure)


def _features_on_tags(statistics: TagStatistics, folder: str, subject: list[Tag], word: str | None) -> Iterator[Advice]:
    """Tags of the subject on nearly every image: what they describe is not learned under the trigger word."""
    if not subject:
        return
    start, start_zh = _place(statistics, folder)
    own = f"`{word}`" if word else say("the trigger word", "触发词")
    listed = ", ".join(_quoted(tag.text) for tag in subject)
    text = say(
        f"{start}on nearly every image: {_shares(statistics, subject, folder)}. These features stay on these tags, "
        f"and {own} alone will not produce them",
        f"{start_zh}几乎每张图都有：{_shares(statistics, subject, folder)}。这些特征会留在这些词上，只写 {own} 出不来",
    )
    cure = say(
        f"To move them to {own}: delete_tags = [{listed}] in edit_tags.py; all of them, or the one left over will come "
        "out wrong. To keep them controllable (another hair color), keep the tags and write them in your prompts",
        f"要转移到 {own} 上：在 edit_tags.py 里设 delete_tags = [{listed}]；漏删哪个，哪个出图就不对。"
        "想保留变化的余地（如换发色）：不要删，出图时把这些词也写上",
    )
    yield Advice("amber", text, cure, tuple(tag.text for tag in subject))


def _forgotten(statistics: TagStatistics, folder: str, nearly: list[Tag]) -> Iterator[Advice]:
    """Tags on nearly all images, but not on all."""
    if not nearly:
        return
    start, start_zh = _place(statistics, folder)
    listed = say("; ", "；").join(
        f"`{tag.text}`{say(': ', '：')}{some(statistics.missing(tag, folder), 3)}" for tag in nearly[:SHOWN]
    )
    text = say(
        f"{start}on nearly all images but missing on a few, probably forgotten. {listed}",
        f"{start_zh}几乎每张图都有、只有个别图没有的标签，可能是漏打。{listed}",
    )
    cure = say(
        "Check these images: add the tag where the feature is visible", "请看一下这些图：画面里有该特征就补上标签"
    )
    yield Advice("amber", text, cure, tuple(tag.text for tag in nearly))


def _inseparable(statistics: TagStatistics, folder: str, tags: list[Tag]) -> Iterator[Advice]:
    """Tags that are on exactly the same images."""
    groups: dict[int, list[Tag]] = {}
    for tag in tags:
        if SOMETIMES <= statistics.share(tag, folder) < ALWAYS and statistics.count(tag, folder) > FEW:
            groups.setdefault(tag.images & statistics.folders[folder], []).append(tag)
    together = [group for group in groups.values() if len(group) > 1]
    if not together:
        return
    start, start_zh = _place(statistics, folder)
    listed = say("; ", "；").join(
        _listed(group) + say(f" ({plural(len_of, 'image')})", f"（{len_of} 张）")
        for group in together[:SHOWN]
        for len_of in [statistics.count(group[0], folder)]
    )
    text = say(
        f"{start}tags that always appear together can't be told apart: {listed}",
        f"{start_zh}总是同时出现的标签，模型无法区分：{listed}",
    )
    cure = say(
        "Fine if they mean the same thing. Otherwise add an image that has only one of them",
        "如果本来就是一回事则没问题；否则请补充只含其中一个的图片",
    )
    yield Advice("amber", text, cure, tuple(tag.text for group in together for tag in group))


def _in_order(statistics: TagStatistics, folder: str, tags: list[Tag], scene: list[Tag]) -> Iterator[Advice]:
    """What becomes of the other tags, which need no change."""
    start, start_zh = _place(statistics, folder)
    controllable = [tag for tag in tags if SOMETIMES <= statistics.share(tag, folder) < ALWAYS]
    rare = [tag for tag in tags if statistics.count(tag, folder) <= FEW and statistics.share(tag, folder) < SOMETIMES]
    keep = "on nearly every image: they stay on their own words. Keep them, or they become part of the subject"
    for group, english, chinese in (
        (
            scene,
            (f"tag about scene, pose or view is {keep}", f"tags about scene, pose or view are {keep}"),
            "属于画面、姿势、视角之类，几乎每张图都有：会留在这些词上。请保留，否则会变成主体的一部分",
        ),
        (controllable, ("tag stays controllable", "tags stay controllable"), "可自由控制"),
        (
            rare,
            (f"tag is on at most {FEW} images and has little effect",
             f"tags are on at most {FEW} images and have little effect"),
            f"最多出现在 {FEW} 张图上，作用很小",
        ),
    ):  # fmt: skip
        if group:
            text = say(
                f"{start}{plural(len(group), *english)}: {_shares(statistics, group, folder)}",
                f"{start_zh}{len(group)} 个标签{chinese}：{_shares(statistics, group, folder)}",
            )
            yield Advice("green", text, "", tuple(tag.text for tag in group))


def _about_spellings(statistics: TagStatistics) -> list[Advice]:
    """Tags that are the same but for their spelling, which the text encoder does not know."""
    alike: dict[str, dict[str, int]] = {}
    for key, tag in statistics.tags.items():
        letters = re.sub(r"[\W_]+", "", key)
        group = alike.setdefault(letters if len(letters) >= 4 else f" {key}", {})  # :3 and 3 are not the same
        for text, number in tag.spellings.items():
            group[text.lower()] = group.get(text.lower(), 0) + number  # CLIP makes no difference of capital letters
    groups = [group for group in alike.values() if len(group) > 1]
    if not groups:
        return []
    wanted, shown = [], []
    for group in groups:
        best = max(group, key=lambda text: (group[text], "_" not in text))
        others = {spelled(text): text for text in group if text != best}  # a rule meets all spellings of a tag
        wanted += [_quoted(f"{text} -> {best}") for text in others.values()]
        shown.append(", ".join(f"`{text}` ({number})" for text, number in group.items()))
    listed, rules = "; ".join(shown[:SHOWN]), ", ".join(wanted)
    return [
        Advice(
            "amber",
            say(
                f"the same tag spelled differently, which the text encoder sees as different words: {listed}",
                f"同一个标签有不同写法，对文本编码器来说是不同的词：{listed}",
            ),
            say(f"replace_tags = [{rules}] in edit_tags.py", f"在 edit_tags.py 里设 replace_tags = [{rules}]"),
            tuple(text for group in groups for text in group),
        )
    ]


def _about_lengths(statistics: TagStatistics, token_counts: Callable[[list[str]], list[int]]) -> list[Advice]:
    """Captions of which the text encoder would not see the end."""
    images = [image for image in statistics.images if image.caption]
    counts = token_counts([image.caption or "" for image in images])
    long = sorted(
        ((number, image.name) for number, image in zip(counts, images, strict=True) if number > TOKEN_LIMITS[0]),
        reverse=True,
    )
    if not long:
        return []
    enough = next((limit for limit in TOKEN_LIMITS if limit >= long[0][0]), None)
    names = some([f"{name} ({number})" for number, name in long])
    cure = (
        say(
            f"Set max_token_length = {enough} in lora_train_command_line.py, or delete tags",
            f"请在 lora_train_command_line.py 里设 max_token_length = {enough}，或删减标签",
        )
        if enough
        else say(
            f"Shorten them: even max_token_length = {TOKEN_LIMITS[-1]} reads no more than that",
            f"请删减：即使 max_token_length = {TOKEN_LIMITS[-1]}，超出部分也不会读取",
        )
    )
    return [
        Advice(
            "amber",
            say(
                f"{plural(len(long), 'caption has', 'captions have')} more than the {TOKEN_LIMITS[0]} tokens that are "
                f"read by default: {names}",
                f"{len(long):,} 个标注文件超过默认读取的 {TOKEN_LIMITS[0]} 个 token：{names}",
            ),
            cure,
        )
    ]


def _quoted(text: str) -> str:
    """As it is written in the parameter block."""
    return json.dumps(text, ensure_ascii=False)


def _listed(tags: list[Tag]) -> str:
    return say(", ", "、").join(f"`{tag.text}`" for tag in tags)


def _shares(statistics: TagStatistics, tags: list[Tag], folder: str) -> str:
    """ "`hat` 40 %, `smile` 25 % and 3 more"."""
    return some([f"`{tag.text}` {statistics.share(tag, folder):.0%}".replace("%", " %") for tag in tags], SHOWN)


def _not_english(tags: list[str], total: int, words: list[str], script: tuple[str, str]) -> tuple[str, str]:
    """What is said of captions that the text encoders do not know the language of, and the cure.

    Args:
        tags: one of each such caption.
        total: captions in all.
        words: such trigger words.
    """
    listed = ", ".join(f"`{word}`" for word in words)
    captions_en = f"{len(tags):,} of {plural(total, 'caption')} (such as `{tags[0]}`)" if tags else ""
    captions_zh = f"{total:,} 个标注文件中的 {len(tags):,} 个（如 `{tags[0]}`）" if tags else ""
    word_en = f"the trigger {'words' if len(words) > 1 else 'word'} {listed}" if words else ""
    word_zh = f"触发词 {listed} " if words else ""
    where = " and ".join(filter(None, [captions_en, word_en]))
    text = say(
        f"{script[0]} in place of English: {where}. The text encoders of SD 1.x, 2.x and SDXL know English only: they "
        "get fragments in place of these words, and little is learned by them",
        f"{'、'.join(filter(None, [captions_zh, word_zh]))}用的是{script[1]}。SD 1.x、2.x、SDXL 的文本编码器只懂英文，"
        "读到的只是零碎的字节，很难学到这些词上",
    )
    cures = []
    if tags:
        cures.append(say(
            'Use English tags: tag_images.py writes them (existing = "replace")',
            '请改用英文标签，可用 tag_images.py 重新打（existing = "replace"）',
        ))  # fmt: skip
    if words:
        cures.append(say(
            "Spell the trigger word in Latin letters (as xiaomei for 小美), in the folder's name and in the captions",
            "触发词请改用拼音等拉丁字母（如 小美 写成 xiaomei），目录名和标注里都要改",
        ))  # fmt: skip
    return text, say(". ", "。").join(cures)
