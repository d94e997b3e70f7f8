"""What is wrong with a training that is about to begin, how wrong, and the cure.

    red     what is trained would be wrong or wasted, or the run cannot start
    amber   it works, but is worth a look
    green   looked at, and in order

Much is known elsewhere and said as a line (`checks`, `data.plan`, `data.samples`, ...): `of_line` makes it a finding.
What needs several facts at once is found here. Each function takes facts and gives findings; where the facts come from
is the business of `tooling.preflight` and `training.dataset_findings`. To look at one thing more: write such a
function, and let them call it.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from library.contracts import Sample
from library.messages import Note, plural, say

LEVELS = {  # the most serious first: key -> words for it
    "red": ("fix this", "必须解决"),
    "amber": ("worth a look", "值得留意"),
    "green": ("fine", "正常"),
}
TOPICS = {  # in the page's order
    "parameters": ("Parameters", "参数"),
    "pictures": ("Images", "图片"),
    "captions": ("Tags", "标签"),
    "regularization": ("Regularization", "正则化"),
    "model": ("Base model", "底模"),
    "machine": ("Machine", "机器"),
}

FEW_IMAGES, MANY_IMAGES = 10, 200  # of a concept; the usual is 20 to 100
FEW_STEPS, USUAL_STEPS, MANY_STEPS = 400, 1500, 6000
MANY_VIEWS = 300  # of one image in a training: beyond, it is learned by heart
MANY_EPOCHS = 40  # beyond, more repeats are the better way to more steps: each epoch saves, draws and shuffles
MUCH_TRANSPARENT = 0.02  # a share of the image; less is the smooth edge of a drawing
ENOUGH_REGULARIZATION = 0.8  # images, as a share of the training images; as many are wanted, nearly so do as well
SHARE_OF_OTHER_BUCKETS = 0.1  # of the regularization samples
# Pixels of training against those of the base model's own images; beyond, heads double or faces melt.
USUAL_AREA = (0.5, 2.0)

# Between what is wrong and what to do ends a sentence, in every line of this project; a question mark stays with it.
END_OF_SENTENCE = re.compile(r"(?:(?<!e\.g)\.|(?<=\?))\s+(?=[A-Z0-9\"])|。|(?<=？)")


class Finding(NamedTuple):
    """One thing that was looked at."""

    level: str  # a key of LEVELS
    topic: str  # a key of TOPICS
    text: str
    cure: str = ""
    images: tuple[Path, ...] = ()

    @property
    def line(self) -> str:
        """All in one line, as the trainer says it."""
        return say(f"{self.text}. {self.cure}", f"{self.text}。{self.cure}") if self.cure else self.text


def of_line(line: str, topic: str, level: str = "amber") -> Finding:
    """A line of another part as a finding: its first sentence says what is wrong, the rest what to do.

    Args:
        topic, level: where the line does not know its own; see `messages.Note`.
    """
    text, cure = line, ""
    if (end := END_OF_SENTENCE.search(line)) and end.end() < len(line):
        text, cure = line[: end.start()], line[end.end() :]
    if not isinstance(line, Note):
        return Finding(level, topic, text, cure)
    return Finding(line.level, line.topic or topic, text, cure, line.images)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """By level, red first, then by topic; what is said twice stays once."""
    levels, topics = list(LEVELS), list(TOPICS)
    return sorted(dict.fromkeys(findings), key=lambda one: (levels.index(one.level), topics.index(one.topic)))


def level_name(level: str) -> str:
    """A key of LEVELS in words."""
    return say(*LEVELS[level])


def count(findings: Iterable[Finding]) -> dict[str, int]:
    """How many of each level."""
    counts = Counter(finding.level for finding in findings)
    return {level: counts[level] for level in LEVELS}


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first few of many names."""
    shown, rest = say(", ", "、").join(names[:limit]), len(names) - limit
    return shown + (say(f" and {rest} more", f" 等 {len(names)} 个") if rest > 0 else "")


def names_of(paths: Iterable[Path]) -> str:
    return some([f"{path.parent.name}/{path.name}" for path in paths])


# ---- parameters ----


def steps(step_count: int, epoch_count: int, views: int, by_epochs: bool) -> Iterator[Finding]:
    """Whether a training is of a usual length.

    Args:
        views: how often a training image is seen in all, on average.
        by_epochs: whether max_train_epochs decides, and not max_train_steps.
    """
    seen = f"each image is seen about {plural(views, 'time')}" if views else "not even each image is seen"
    seen_zh = f"每张图约看 {views} 次" if views else "连每张图看一次都不到"
    text = say(
        f"{plural(step_count, 'step')} in {plural(epoch_count, 'epoch')}, {seen}",
        f"{epoch_count} 轮共 {step_count:,} 步，{seen_zh}",
    )
    if FEW_STEPS <= step_count <= MANY_STEPS:
        yield Finding("green", "parameters", text)
        return
    per_epoch = step_count / epoch_count
    epochs = round(USUAL_STEPS / per_epoch)
    if not by_epochs:
        cure = say(
            f"max_train_steps = {USUAL_STEPS} is a usual length (1,000 to 3,000)",
            f"设 max_train_steps = {USUAL_STEPS} 是常用的长度（1000~3000）",
        )
    elif 1 <= epochs <= MANY_EPOCHS:
        cure = say(
            f"max_train_epochs = {epochs} gives about {epochs * per_epoch:,.0f} steps; 1,000 to 3,000 are usual",
            f"设 max_train_epochs = {epochs} 约为 {epochs * per_epoch:,.0f} 步；常用 1000~3000",
        )
    elif epochs:
        factor = min(USUAL_STEPS / step_count, max(1.0, MANY_VIEWS / max(1, views)))
        more = factor < USUAL_STEPS / step_count  # else the same few images would be seen more often than is of use
        cure = say(
            f"Multiply the repeats (the number the folder names begin with) by about {factor:.0f}"
            + ", and collect more images" * more,
            f"请把目录名开头的重复次数增加到约 {factor:.0f} 倍" + "，并收集更多图片" * more,
        )
    else:
        cure = say(
            f"One epoch is already too long: max_train_steps = {USUAL_STEPS} ends it there; or lower the folders' "
            "repeats",
            f"一轮就已经太长：设 max_train_steps = {USUAL_STEPS} 可提前结束，或减少目录名中的重复次数",
        )
    reason = (
        say("too few to learn much", "太少，学不到多少")
        if step_count < FEW_STEPS
        else say("a lot; it will probably overfit", "太多，很可能过拟合")
    )
    yield Finding("amber", "parameters", say(f"{text}: {reason}", f"{text}：{reason}"), cure)


def saving(epoch_count: int, step_count: int, every_epochs: int | None, every_steps: int | None) -> Iterator[Finding]:
    """Whether there will be earlier files to go back to when the last one is overfitted."""
    kept = (epoch_count - 1) // every_epochs if every_epochs else 0
    kept += (step_count - 1) // every_steps if every_steps else 0
    if kept:
        yield Finding(
            "green",
            "parameters",
            say(
                f"{plural(kept, 'earlier file is', 'earlier files are')} kept besides the last one",
                f"除最后一个文件外，另存 {kept} 个较早的文件",
            ),
        )
    elif epoch_count > 1:
        wanted = max(1, epoch_count // 5)
        yield Finding(
            "amber",
            "parameters",
            say(
                "only the last file is kept: if it is overfitted, there is no earlier one to go back to",
                "只保存最后一个文件：如果过拟合，就没有较早的文件可用",
            ),
            say(f"Set save_every_n_epochs = {wanted}", f"请设 save_every_n_epochs = {wanted}"),
        )


def resolution(width: int, height: int, usual: int) -> Iterator[Finding]:
    """Whether images are trained at about the size the base model knows."""
    share = width * height / usual**2
    if USUAL_AREA[0] <= share <= USUAL_AREA[1]:
        return
    yield Finding(
        "amber",
        "parameters",
        say(
            f"resolution {width} x {height}, but the base model was trained at {usual} x {usual}",
            f"训练分辨率为 {width} x {height}，而底模是按 {usual} x {usual} 训练的",
        ),
        say(
            f'Set resolution = {usual}, or "auto": at other sizes the base model itself works badly',
            f'请设 resolution = {usual} 或 "auto"：换成别的尺寸，底模自己也画不好',
        ),
    )


def missing_packages(wanted: Mapping[str, str], is_there: Callable[[str], bool]) -> Iterator[Finding]:
    """Packages that an option asks for.

    Args:
        wanted: package -> the option that needs it, as it is written.
        is_there: whether a package is installed.
    """
    for package, written in wanted.items():
        if is_there(package):
            text = say(f"{package} is installed, for {written}", f"已安装 {package}，供 {written} 使用")
            yield Finding("green", "machine", text)
        else:
            yield Finding(
                "red",
                "machine",
                say(f"{written} needs the package {package}", f"{written} 需要 {package}，尚未安装"),
                say(f"pip install {package}, or change that parameter", f"请 pip install {package}，或改用其他设置"),
            )


# ---- images ----


def image_counts(counts: Mapping[str, int]) -> Iterator[Finding]:
    """Whether there are enough images.

    Args:
        counts: folder -> usable images.
    """
    for folder, number in counts.items():
        if number < FEW_IMAGES:
            yield Finding(
                "amber",
                "pictures",
                say(
                    f"{folder}: {plural(number, 'image')}: chance similarities between them are learned too",
                    f"{folder}：只有 {number} 张图片：图与图之间碰巧相同的地方也会被学进去",
                ),
                say(
                    "Collect 20 or more, with different poses, views and backgrounds",
                    "请收集 20 张以上，姿势、视角、背景各不相同",
                ),
            )
        elif number > MANY_IMAGES:
            yield Finding(
                "amber",
                "pictures",
                say(
                    f"{folder}: {number:,} images, more than a concept usually needs (20 to 100)",
                    f"{folder}：{number:,} 张图片，多于一个概念通常所需（20~100 张）",
                ),
                say(
                    "Fine for a style. For a person or an object, leave out blurred and doubtful images, and use "
                    "few repeats",
                    "训练画风没有问题；训练人物或物品，请去掉模糊、可疑的图，并把重复次数调小",
                ),
            )
        else:
            yield Finding(
                "green", "pictures", say(f"{folder}: {plural(number, 'image')}", f"{folder}：{number} 张图片")
            )


def small_buckets(images: Mapping[tuple[int, int], Sequence[Path]], batch_size: int) -> Iterator[Finding]:
    """Buckets with one image, whose batches show nothing else.

    Args:
        images: bucket -> the images an epoch uses of it.
    """
    lonely = {bucket: paths[0] for bucket, paths in images.items() if len(paths) == 1}
    if batch_size == 1 or not lonely or len(images) == 1:
        return
    listed = some([f"{path.name} ({width}x{height})" for (width, height), path in lonely.items()])
    yield Finding(
        "amber",
        "pictures",
        say(
            f"{len(lonely)} of {len(images)} buckets hold a single image, so its quirks are over-learned: {listed}",
            f"{len(images)} 个桶中有 {len(lonely)} 个只有一张图：这张图容易被过度学习：{listed}",
        ),
        say(
            "Crop such images to the shape of others, or raise bucket_reso_steps",
            "请把这些图裁成与其他图相同的比例，或调大 bucket_reso_steps",
        ),
        tuple(lonely.values()),
    )


def natures(natures: Mapping[Path, tuple[bool, float, bool]], has_alpha_mask: bool) -> Iterator[Finding]:
    """What is done to images so that training sees them as their viewer does.

    Args:
        natures: of each image: turned by EXIF, transparent share, colours of another space.
        has_alpha_mask: what is transparent is not learnt at all.
    """
    turned = [path for path, (is_turned, _, _) in natures.items() if is_turned]
    coloured = [path for path, (_, _, is_other) in natures.items() if is_other]
    clear = [path for path, (_, share, _) in natures.items() if share > MUCH_TRANSPARENT]
    if turned:
        yield Finding(
            "green",
            "pictures",
            say(
                f"{plural(len(turned), 'image is', 'images are')} rotated upright by EXIF: {names_of(turned)}",
                f"{len(turned)} 张图片在文件里是转着的，已按 EXIF 摆正：{names_of(turned)}",
            ),
        )
    if coloured:
        yield Finding(
            "green",
            "pictures",
            say(
                f"{plural(len(coloured), 'image is', 'images are')} converted to sRGB from the embedded color "
                f"profile: {names_of(coloured)}",
                f"{len(coloured)} 张图片按其色彩配置文件转换为 sRGB：{names_of(coloured)}",
            ),
        )
    if clear and has_alpha_mask:
        yield Finding(
            "green",
            "pictures",
            say(
                f"the transparent parts of {plural(len(clear), 'image')} are not trained (alpha_mask)",
                f"{len(clear)} 张图片的透明部分不会被学习（alpha_mask）",
            ),
        )
    elif clear:
        yield Finding(
            "amber",
            "pictures",
            say(
                f"{plural(len(clear), 'image has', 'images have')} transparent parts, which become white and are "
                f"learned as white: {names_of(clear)}",
                f"{len(clear)} 张图片有透明部分，会变成白色，并作为白色被学习：{names_of(clear)}",
            ),
            say(
                "Fine if their captions say white background. Set alpha_mask = True to leave these parts out",
                "如果标注里写了 white background 就没问题；设 alpha_mask = True 可以不学习这些部分",
            ),
            tuple(clear),
        )


def blurred(images: Sequence[Path]) -> Iterator[Finding]:
    """Images that are blurred at the training size, the worst first."""
    if images:
        yield Finding(
            "amber",
            "pictures",
            say(
                f"{plural(len(images), 'image is', 'images are')} blurred at the training size, and blur is "
                f"learned too: {names_of(images)}",
                f"{len(images)} 张图片在训练分辨率下是模糊的，模糊也会被学进去：{names_of(images)}",
            ),
            say("Check them, and leave the bad ones out", "请看一下，去掉不好的"),
            tuple(images),
        )


def duplicates(groups: Sequence[Sequence[Sample]]) -> Iterator[Finding]:
    """Images that are there more than once.

    Args:
        groups: images that show the same, two or more in each.
    """
    alike = []
    for group in groups:
        paths = tuple(sample.image_path for sample in group)
        both = len({sample.is_regularization for sample in group}) == 2
        folders = {path.parent for path in paths}
        listed = names_of(paths)
        if both:
            yield Finding(
                "red",
                "pictures",
                say(
                    f"the same image is in both the training and the regularization set: {listed}",
                    f"同一张图既在训练集又在正则化集里：{listed}",
                ),
                say(
                    "Delete it from the regularization set: the two would cancel out",
                    "请从正则化集删除，否则两边互相抵消",
                ),
                paths,
            )
        elif len(folders) > 1 and not group[0].is_regularization:
            yield Finding(
                "red",
                "pictures",
                say(f"the same image is in two concepts: {listed}", f"同一张图在两个概念里：{listed}"),
                say(
                    "Keep it in one of them: the model can't use it to tell the two words apart",
                    "请只留在其中一个：模型无法凭它区分这两个词",
                ),
                paths,
            )
        else:
            alike.append(group)
    if alike:
        paths = tuple(sample.image_path for group in alike for sample in group)
        listed = some([" = ".join(sample.image_path.name for sample in group[:4]) for group in alike])
        is_train = any(not group[0].is_regularization for group in alike)
        yield Finding(
            "amber",
            "pictures" if is_train else "regularization",
            say(
                f"{plural(len(alike), 'image has', 'images have')} duplicates or near-duplicates, and count that many "
                f"times as much: {listed}",
                f"{len(alike)} 张图重复或几乎相同，会被成倍学习：{listed}",
            ),
            say(
                "Keep the best of each group. tools/prepare_images.py does this",
                "每组只留最好的一张，可用 tools/prepare_images.py 处理",
            ),
            paths,
        )


# ---- tags ----


def trigger_word(
    word: str, folder: str, tags: Mapping[Path, Sequence[str]], has_word: Callable[[str, str], bool],
    *, shuffles: bool, drops: bool, keep_tokens: int,
) -> Iterator[Finding]:  # fmt: skip
    """Whether the word that shall call the concept up stands where it must.

    Args:
        tags: of each image of the folder, in order.
        has_word: whether a word stands in a tag.
        shuffles, drops, keep_tokens: shuffle_caption, caption_tag_dropout_rate above 0, and keep_tokens.
    """
    places = {path: next((at for at, tag in enumerate(own) if has_word(tag, word)), None) for path, own in tags.items()}
    there = [place for place in places.values() if place is not None]
    if not there:
        return  # `data.plan` says so
    if len(there) == len(places):
        text = say(
            f'{folder}: "{word}" is in all {plural(len(places), "caption")}',
            f"{folder}：全部 {len(places)} 个标注文件里都有“{word}”",
        )
        yield Finding("green", "captions", text)
    if not shuffles and not drops:
        return
    if not keep_tokens:
        what = say("shuffled", "打乱顺序") if shuffles else ""
        what += say(" and ", "、") if shuffles and drops else ""
        what += say("dropped at times", "随机去掉") if drops else ""
        yield Finding(
            "amber",
            "captions",
            say(
                f'{folder}: "{word}" is {what} like all other tags (keep_tokens = 0)',
                f"{folder}：“{word}”会和其他标签一样被{what}（keep_tokens = 0）",
            ),
            say(
                "Put it first in every caption and set keep_tokens = 1",
                "请把它放在每条标注的最前面，并设 keep_tokens = 1",
            ),
        )
        return
    late = [path for path, place in places.items() if place is not None and place >= keep_tokens]
    if late:
        yield Finding(
            "amber",
            "captions",
            _word_comes_late(folder, word, keep_tokens, late),
            say(
                f'Put "{word}" first: tools/edit_tags.py does this with trigger_word',
                f"请把“{word}”放到最前面，可用 tools/edit_tags.py 的 trigger_word 处理",
            ),
            tuple(late),
        )


# ---- regularization ----


def regularization_rule(train: Sequence[tuple[str, int, int]], reg: Sequence[tuple[str, int, int]],
    *, uses: Sequence[int], unused: int) -> Iterator[Finding]:  # fmt: skip
    """The rule: training repeats x images >= regularization repeats x images, with its numbers.

    Args:
        train, reg: (folder, repeats, images) of each.
        uses: how often each regularization image of an epoch is used.
        unused: regularization images that no epoch uses.
    """

    def arithmetic(folders: Sequence[tuple[str, int, int]]) -> str:
        return " + ".join(f"{repeats} x {images}" for _, repeats, images in folders)

    left, right = (sum(repeats * images for _, repeats, images in folders) for folders in (train, reg))
    reg_count = sum(images for _, _, images in reg)
    numbers = say(
        f"training {arithmetic(train)} = {left}, regularization {arithmetic(reg)} = {right}",
        f"训练集 {arithmetic(train)} = {left}，正则化 {arithmetic(reg)} = {right}",
    )
    if right > left and unused:
        cure = say(
            "Lower the repeats in the regularization folders' names, or raise those of the training folders",
            "请调小正则化目录名中的重复次数，或调大训练目录的",
        )
        if reg_count > left:
            cure = say(
                f"{left} of them are enough; more epochs or higher training repeats would use the others too",
                f"有 {left} 张就够了；增加轮数或调大训练目录的重复次数，才会用到其余的",
            )
        elif all(repeats > 1 for _, repeats, _ in reg) and len(reg) == 1:
            name, repeats, _ = reg[0]
            wanted = max(1, left // reg_count)
            new = re.sub(r"^\d+", str(wanted), name)
            cure = say(f"Rename {name} to {new}", f"请把 {name} 改名为 {new}")
        yield Finding(
            "amber",
            "regularization",
            say(
                f"{numbers}: training should have at least as many samples, so that all are used",
                f"{numbers}：规则是训练集不少于正则化，这样才会全部用到",
            ),
            cure,
        )
    elif reg_count < ENOUGH_REGULARIZATION * sum(images for _, _, images in train):
        yield Finding(
            "amber",
            "regularization",
            say(
                f"{numbers}: there are fewer regularization images than training images, so each is seen "
                f"{plural(max(uses), 'time')} per epoch and overfits itself",
                f"{numbers}：正则化图片比训练图片少，每张每轮要用 {max(uses)} 次，自身也会过拟合",
            ),
            say(
                "Use at least as many: tools/make_reg_images.py generates one for each training image",
                "数量应不少于训练图片：tools/make_reg_images.py 可按每张训练图各画一张",
            ),
        )
    else:
        each = f"{min(uses)}" if min(uses) == max(uses) else f"{min(uses)}~{max(uses)}"
        yield Finding(
            "green",
            "regularization",
            say(
                f"{numbers}: an epoch uses {len(uses)} of {plural(reg_count, 'image')}, {each} "
                f"{'time' if each == '1' else 'times'} each",
                f"{numbers}：每轮使用 {reg_count} 张中的 {len(uses)} 张，每张 {each} 次",
            ),
        )


def words_in_regularization(
    words: Iterable[str], samples: Sequence[Sample], captions: Mapping[Path, str],
    has_word: Callable[[str, str], bool], drawn_by: Mapping[Path, str],
) -> Iterator[Finding]:  # fmt: skip
    """Regularization images that are called by a trigger word: they teach it the look of what they show.

    Args:
        words: of the training folders.
        captions: as they are trained.
        drawn_by: regularization images that say which model drew them, and that model; those of whom nothing is known
            are missing.
    """
    for word in dict.fromkeys(words):
        called = [sample for sample in samples if has_word(captions[sample.image_path], word)]
        if not called:
            continue
        paths = tuple(sample.image_path for sample in called)
        from_files = [sample for sample in called if sample.caption_path]
        if from_files or any(path in drawn_by for path in paths):
            yield Finding(
                "red",
                "regularization",
                say(
                    f'"{word}" is also on {plural(len(called), "regularization image")}, so the word learns to '
                    f"look like them: {names_of(paths)}",
                    f"“{word}”也对应着 {len(called)} 张正则化图片，这个词会学成它们的样子：{names_of(paths)}",
                ),
                say(
                    "Remove the word from their captions, or from the folder's name where they have none",
                    "请从它们的标注里去掉这个词；没有标注文件的，请改目录名",
                ),
                paths,
            )
        else:
            folders = some(sorted({sample.folder for sample in called}))
            yield Finding(
                "amber",
                "regularization",
                say(
                    f"{folders}: these regularization images have no caption files, so their caption is the "
                    f'folder\'s "{word}", the same as for training',
                    f"{folders}：这些正则化图片没有标注文件，以目录名中的“{word}”作标注，与训练集相同",
                ),
                _class_or_same_person(),
            )


def drawn_by_another(drawn_by: Mapping[Path, str], model: str) -> Iterator[Finding]:
    """Regularization images that another model drew.

    Args:
        drawn_by: model that each image says it was drawn by.
        model: name of the base model, without ending.
    """

    def plain(name: str) -> str:
        return re.sub(r"[\W_]+", "", re.sub(r"\.(safetensors|ckpt)$", "", Path(name).name.lower()))

    others = {path: name for path, name in drawn_by.items() if plain(name) != plain(model)}
    if others:
        names = some(sorted(set(others.values())))
        yield Finding(
            "amber",
            "regularization",
            say(
                f"{plural(len(others), 'regularization image was', 'regularization images were')} generated by "
                f"another model ({names}) than the base model ({model}): they pull it toward a different look",
                f"{len(others)} 张正则化图片是其他模型（{names}）画的，不是底模（{model}）画的：会把画风带偏",
            ),
            say("Generate them again with tools/make_reg_images.py", "请用 tools/make_reg_images.py 重新生成"),
            tuple(others),
        )
    elif drawn_by:
        yield Finding(
            "green",
            "regularization",
            say(
                f"{plural(len(drawn_by), 'image was', 'images were')} generated by the base model",
                f"{len(drawn_by)} 张图片由底模自己画成",
            ),
        )


def other_buckets(train: set[tuple[int, int]], reg: Mapping[tuple[int, int], int]) -> Iterator[Finding]:
    """Regularization images of shapes that no training image has.

    Args:
        train: the training images' buckets.
        reg: bucket -> samples of an epoch.
    """
    total, other = sum(reg.values()), {bucket: number for bucket, number in reg.items() if bucket not in train}
    if not total or sum(other.values()) / total <= SHARE_OF_OTHER_BUCKETS:
        return
    listed = some([f"{width}x{height}" for width, height in sorted(other)])
    yield Finding(
        "amber",
        "regularization",
        _shapes_without_training(sum(other.values()), total, listed),
        say(
            "Generate them in the training images' sizes: tools/make_reg_images.py does this",
            "请按训练图的尺寸生成：tools/make_reg_images.py 会这样做",
        ),
    )


def _word_comes_late(folder: str, word: str, keep_tokens: int, paths: list[Path]) -> str:
    return say(
        f'{folder}: "{word}" is not among the first keep_tokens = {keep_tokens} tags of '
        f"{plural(len(paths), 'caption')}, so another tag is kept fixed instead: {names_of(paths)}",
        f"{folder}：有 {len(paths)} 个标注文件的前 keep_tokens = {keep_tokens} 个里没有“{word}”，固定下来的是"
        f"别的标签：{names_of(paths)}",
    )


def _class_or_same_person() -> str:
    return say(
        "Fine if they show the same person (faces as the training set, full images here). If the base "
        "model generated them, name the folder after the class, e.g. 1_woman",
        "如果拍的就是同一个人（脸部作训练集、完整图片放这里）则正确；如果是底模画的，目录请以类别命名，如 1_woman",
    )


def _shapes_without_training(other: int, total: int, listed: str) -> str:
    return say(
        f"{other} of {total} regularization samples of an epoch have shapes that no training "
        f"image has ({listed}): they help only at those sizes",
        f"每轮 {total} 个正则化样本中有 {other} 个的尺寸在训练集里没有（{listed}）：只在这些尺寸上起作用",
    )
