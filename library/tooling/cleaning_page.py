"""The summary of prepare_images.py: what was made, what was left out and why, and what a person should look at."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from library.data import images
from library.data.folders import some
from library.images import quality
from library.images.manifest import Record
from library.messages import say
from library.options.tools import PrepareImages
from library.reporting import pages
from library.reporting.pages import Box, Html
from library.tooling.raw_images import Group, Raw, Survey

GROUPS, BOXES, WORST, PAIRS, CUT_OUTS = 24, 36, 12, 18, 60  # shown of each: the page must open on a phone
MUCH_ENLARGED = 2.0  # times in each direction; three of four pixels are then made up


@dataclass
class Outcome:
    """All that a run found out and did."""

    survey: Survey
    groups: list[Group]
    mirrored: list[tuple[Raw, Raw]]
    left_out: dict[str, str]  # duplicates: name -> the one that was kept in its place
    records: dict[str, Record]  # of the pictures that were worked on, now or by an earlier run
    deleted: dict[str, list[str]]  # pictures that an earlier run made and that are gone: raw name -> files
    stale: dict[str, list[str]]  # files that are still there though their raw picture is not worked on any more
    models: list[str] = field(default_factory=list)  # what does what, a line each
    next_steps: list[str] = field(default_factory=list)

    def files(self) -> list[str]:
        """All clean pictures, without masks."""
        return [file for record in self.records.values() for file in record.report.get("size", {})]


def findings(outcome: Outcome, settings: PrepareImages) -> list[tuple[str, str, str]]:
    """(level, what was found, what to do) for the page and for the terminal."""
    survey, records = outcome.survey, outcome.records
    worked = [raw for raw in survey.pictures if raw.name in records]
    found: list[tuple[str, str, str]] = []

    def add(names: Iterable[str], what: str, cure: str = "", level: str = "amber") -> None:
        if names := list(names):
            count, listed = len(names), some(names)
            found.append((level, say(f"{what}: {count} ({listed})", f"{what}：{count} 张（{listed}）"), cure))

    def with_report(key: str) -> list[str]:
        return [name for name, record in records.items() if record.report.get(key)]

    add(
        survey.skipped,
        say("could not be used", "无法使用"),
        say(
            "The summary lists the reasons; nothing was changed in images_dir",
            "原因见结果页；images_dir 里没有任何改动",
        ),
    )
    add(
        with_report("gone"),
        say("nothing left after erasing", "擦除后什么也不剩"),
        say("Erase less of them, or leave them out", "请少擦一些，或不要用它们"),
    )
    add(
        (raw.name for raw in worked if raw.blur >= quality.BLURRED),
        say("blurred", "模糊"),
        say(
            "A LoRA learns the blur too; look at them in the summary and move poor ones out of images_dir",
            "LoRA 会连模糊一起学；请在结果页查看，把不好的移出 images_dir",
        ),
    )
    add(
        (raw.name for raw in worked if raw.noise >= quality.NOISY),
        say("noisy", "噪点多"),
        say("If noise is left, raise denoise", "如仍有噪点，请调高 denoise")
        if settings.denoise
        else say(
            "denoise = 5 smooths them, and all others a little; or move them out of images_dir",
            "设 denoise = 5 可去噪，但其他图也会略微变糊；也可把它们移出 images_dir",
        ),
    )
    enlarged = {name: max(records[name].report["enlarged"].values()) for name in with_report("enlarged")}
    much = [name for name, factor in enlarged.items() if factor >= MUCH_ENLARGED]
    add(
        much,
        say("enlarged more than twice in each direction", "边长放大到两倍以上"),
        say(
            "Most of what is seen is made up; get them larger, or leave them out",
            "画面大半是凭空补出来的，请换大图或不用",
        ),
        "red",
    )
    add(
        (name for name in enlarged if name not in much and not records[name].report.get("by")),
        say("enlarged by Lanczos, which adds no detail", "用 Lanczos 放大，没有增加细节"),
        say(
            "Get them larger; or put a super-resolution model such as RealESRGAN_x4plus.pth into a folder of "
            "models_dirs",
            "最好换大图；也可把 RealESRGAN_x4plus.pth 等超分辨率模型放进 models_dirs 所列目录",
        ),
    )
    size = f"{settings.resolution} x {settings.resolution}"
    add(
        (file for record in records.values() for file in record.report.get("small", ())),
        say(f"below {size} pixels and left so", f"小于 {size} 像素，未放大"),
        say(
            'The trainer will enlarge them; get them larger, or set upscale = "auto"',
            '训练时会被放大；请换大图，或设 upscale = "auto"',
        ),
    )
    if settings.text == "erase":
        add(
            with_report("text"),
            say("text or watermarks erased", "擦除了文字或水印"),
            say("Look in the summary whether the boxes were right", "请在结果页查看框得是否都对"),
        )
    else:
        add(
            with_report("text"),
            say("may bear text or a watermark", "可能有文字或水印"),
            say(
                'If the boxes in the summary are right: text = "erase". If only some are: write those into a regions '
                "file",
                '如果结果页上的框都对，设 text = "erase"；只有部分对，请把它们写进 regions 文件',
            ),
        )
    add(
        with_report("doubtful"),
        say("background kept, as no subject was found", "没有找到主体，背景保留"),
        say("Cut them out by hand, or leave them out", "请手动抠图，或不要用"),
    )
    if settings.faces != "keep":
        without = [name for name, record in records.items() if not record.report.get("faces")]
        cure = say("Where there is one, treat it by hand", "有脸的请手动处理")
        if not any(record.report.get("face_model") for record in records.values()):
            cure += say(
                "; drawn faces need lbpcascade_animeface.xml or a YOLO face model in a folder of models_dirs",
                "；二次元脸需要在 models_dirs 所列目录放 lbpcascade_animeface.xml 或 YOLO 人脸模型",
            )
        nothing_to_learn = settings.faces in ("cut out", "recipe") and len(without) == len(records)
        if nothing_to_learn:
            what = say(
                "no face found in any picture, so there is nothing to learn", "所有图片都没有找到人脸，没有可训练的内容"
            )
        else:
            what = say("no face found", "没有找到人脸")
        add(without, what, cure, "red" if nothing_to_learn else "amber")
    if settings.faces == "recipe":
        add(
            (name for name, record in records.items() if not any(file.startswith("reg/") for file in record.files)),
            say("too blurred or too small for reg, only their faces are used", "太糊或太小，不放入 reg，只用其中的脸"),
        )
    add(
        (raw.name for raw in worked if raw.is_animated),
        say("animated, only the first frame taken", "动图，只取第一帧"),
        level="green",
    )
    add(
        (file for files in outcome.deleted.values() for file in files),
        say("deleted or moved since an earlier run, and not made again", "之前生成后被删除或移走，不再生成"),
        say("overwrite = True makes them anew", "需要时设 overwrite = True 重新生成"),
        "green",
    )
    add(
        (file for files in outcome.stale.values() for file in files),
        say(
            "left from earlier runs, their raw pictures gone, left out or skipped now",
            "以前生成的，其原图现已不在、被略过或判为重复",
        ),
        say("Delete them if they are not wanted", "不需要的请自行删除"),
    )
    return found


def build(outcome: Outcome, settings: PrepareImages, output: Path) -> str:
    """The page."""
    survey, records = outcome.survey, outcome.records
    files = outcome.files()
    masks = sum(len(record.report.get("erased", {})) for record in records.values())
    numbers = {
        say("raw pictures", "原始图片"): len(survey.pictures) + len(survey.skipped),
        say("clean pictures", "整理后的图片"): len(files),
        say("duplicates left out", "去掉的重复图片"): len(outcome.left_out),
        say("skipped", "略过"): len(survey.skipped),
        say("with a mask", "带蒙版"): masks,
        say("blurred", "模糊"): sum(raw.blur >= quality.BLURRED for raw in survey.pictures if raw.name in records),
        say("noisy", "噪点多"): sum(raw.noise >= quality.NOISY for raw in survey.pictures if raw.name in records),
    }
    found = [pages.finding(*one) for one in findings(outcome, settings)]
    if not found:
        found = [pages.finding("green", say("nothing that needs a look", "没有需要留意的问题"))]
    blocks = [
        pages.paragraph(f"{survey.folder} → {output}"),
        pages.facts(numbers),
        *(pages.paragraph(line, faint=True) for line in outcome.models),
        pages.section(say("What to look at", "需要留意的地方"), *found),
        *_duplicates(outcome, settings),
        *_text(outcome, settings),
        *_cut_outs(outcome, settings, output),
        *_worst(outcome),
        *_pairs(outcome, output),
        *_skipped(survey),
        pages.section(say("What to do next", "接下来"), *map(pages.paragraph, outcome.next_steps)),
    ]
    return pages.page(say("Prepared pictures", "图片整理结果"), *blocks)


def _small(raw: Raw) -> Image.Image | Path:
    """A small picture of a raw one, read as safely as everything else."""
    try:
        return images.raw(raw.path, area=2 * pages.THUMBNAIL**2)[1]
    except images.BrokenPicture:  # since it was looked at
        return Path()


def _size(raw: Raw) -> str:
    return f"{raw.width} × {raw.height}"


def _more(count: int, shown: int) -> list[Html]:
    rest = count - shown
    return [pages.paragraph(say(f"and {rest:,} more", f"另有 {rest:,} 项未显示"), faint=True)] if rest > 0 else []


def _duplicates(outcome: Outcome, settings: PrepareImages) -> list[Html]:
    if not outcome.groups and not outcome.mirrored:
        return []
    keeps = settings.duplicates == "keep"
    intro = (
        say('All are kept, because duplicates = "keep".', '全部保留（duplicates = "keep"）。')
        if keeps
        else say(
            "The first of each group is kept: most pixels, unless it was only blown up; then least compressed. If a "
            "group shows different pictures, lower similarity.",
            "每组保留第一张：像素最多（单纯放大的不算），其次压缩最少。如果一组里其实是不同的图片，请调低 similarity。",
        )
    )
    blocks = [pages.paragraph(intro)]
    for number, group in enumerate(outcome.groups[:GROUPS], 1):
        figures = []
        for raw in group.members[:8]:
            is_kept = keeps or raw.name in group.kept
            word = say("kept", "保留") if is_kept else say("left out", "去掉")
            same = raw.digest == group.members[0].digest and raw is not group.members[0]
            note = f"{_size(raw)} · {word}" + (say(" · the same file", " · 文件完全相同") if same else "")
            figures.append(pages.picture(_small(raw), raw.name, note))
        head = say(f"Group {number}: {len(group.members)} pictures", f"第 {number} 组：{len(group.members)} 张")
        blocks += [pages.paragraph(head), pages.pictures(figures), *_more(len(group.members), 8)]
    blocks += _more(len(outcome.groups), GROUPS)
    if outcome.mirrored:
        rows = [(first.name, second.name) for first, second in outcome.mirrored[:50]]
        head = say(
            "Mirrored copies, kept: fine where left and right do not matter, else leave one out.",
            "左右镜像的图片，均保留：如果主体左右不对称（发型、徽章等），请去掉其中一张。",
        )
        table = pages.table((say("picture", "图片"), say("its mirror image", "其镜像")), rows)
        blocks += [pages.paragraph(head), table, *_more(len(outcome.mirrored), 50)]
    return [pages.section(say("The same picture again", "重复的图片"), *blocks)]


def _text(outcome: Outcome, settings: PrepareImages) -> list[Html]:
    found = [raw for raw in outcome.survey.pictures if raw.name in outcome.records]
    found = [raw for raw in found if outcome.records[raw.name].report.get("text")]
    if not found:
        return []
    found.sort(key=lambda raw: -max(box[4] for box in outcome.records[raw.name].report["text"]))
    figures = []
    for raw in found[:BOXES]:
        boxes = outcome.records[raw.name].report["text"]
        note = pages.Html("<br>".join(map(_as_region, sorted(boxes, key=lambda box: -box[4])[:3])))
        figures.append(pages.picture(_small(raw), raw.name, note, [Box(*box[:4], f"{box[4]:.0%}") for box in boxes]))
    intro = say(
        "Proposals, the surest first; nothing was read. The numbers can be copied into a regions file, as "
        "name: left, top, width, height.",
        "只是推测，并未识别文字；把握大的排在前面。数字可以直接抄进 regions 文件，写作“文件名: 左, 上, 宽, 高”。",
    )
    heading = say("Text and watermarks", "文字与水印")
    return [pages.section(heading, pages.paragraph(intro), pages.pictures(figures), *_more(len(found), BOXES))]


def _as_region(box: list[float]) -> str:
    return ", ".join(f"{100 * share:.1f}%" for share in box[:4])


def _cut_outs(outcome: Outcome, settings: PrepareImages, output: Path) -> list[Html]:
    if settings.faces not in ("cut out", "recipe"):
        return []
    files = [file for file in outcome.files() if "_face" in file and not file.startswith("reg/")]
    figures = [pages.picture(output / file, file) for file in files[:CUT_OUTS] if (output / file).exists()]
    if not figures:
        return []
    intro = say("Delete what is no face: it is not made again.", "不是脸的请直接删除，不会再次生成。")
    return [
        pages.section(
            say("Faces", "人脸"), pages.paragraph(intro), pages.pictures(figures), *_more(len(files), CUT_OUTS)
        )
    ]


def _worst(outcome: Outcome) -> list[Html]:
    worked = [raw for raw in outcome.survey.pictures if raw.name in outcome.records]
    if len(worked) < 3:
        return []
    kinds = (
        (say("Smallest", "最小"), lambda raw: raw.area, lambda raw: _size(raw)),
        (
            say("Most blurred", "最模糊"),
            lambda raw: -raw.blur,
            lambda raw: say(f"edges {raw.blur:.1f} px wide", f"边缘宽 {raw.blur:.1f} 像素"),
        ),
        (
            say("Noisiest", "噪点最多"),
            lambda raw: -raw.noise,
            lambda raw: say(f"noise {raw.noise:.1f} of 255", f"噪声 {raw.noise:.1f}（满 255）"),
        ),
    )
    blocks = [
        pages.paragraph(
            say(
                f"Measured at the training size. Sharp edges are 0.8 to 1 px wide; from {quality.BLURRED:g} a picture "
                f"counts as blurred, from {quality.NOISY:g} of noise as noisy.",
                f"按训练尺寸测量。清晰的边缘宽 0.8～1 像素，达到 {quality.BLURRED:g} 算模糊；"
                f"噪声达到 {quality.NOISY:g} 算噪点多。",
            )
        )
    ]
    for heading, key, note in kinds:
        worst = sorted(worked, key=key)[: min(WORST, len(worked) // 2)]
        figures = [pages.picture(_small(raw), raw.name, note(raw)) for raw in worst]
        blocks.append(pages.folded(heading, pages.pictures(figures)))
    return [pages.section(say("The poorest", "质量最差的"), *blocks)]


def _pairs(outcome: Outcome, output: Path) -> list[Html]:
    """Before and after; first those whose background a guess removed, then those that changed most."""

    def changed(raw: Raw) -> float:
        report = outcome.records[raw.name].report
        left, top, right, bottom = report.get("trim", (0, 0, 1, 1))
        cut = 1 - (right - left) * (bottom - top)
        return cut + max(report.get("erased", {}).values(), default=0)

    worked = [raw for raw in outcome.survey.pictures if raw.name in outcome.records]
    guessed = {name for name, record in outcome.records.items() if record.report.get("guessed")}
    worked.sort(key=lambda raw: (raw.name not in guessed, -changed(raw), raw.name))
    figures = []
    for raw in worked:
        report = outcome.records[raw.name].report
        file = next((f for f in report.get("size", {}) if (output / f).exists() and "_face" not in f), None)
        if file is None:
            continue
        left, top, right, bottom = report.get("trim", (0, 0, 1, 1))
        boxes = [Box(left, top, right - left, bottom - top)] if "trim" in report else []
        width, height = report["size"][file]
        note = f"{width} × {height}"
        if file in report.get("erased", {}):
            erased = report["erased"][file]
            note += say(f" · {erased:.0%} not learnt", f" · {erased:.0%} 不学习")
        before = say(f"before: {_size(raw)}", f"整理前：{_size(raw)}")
        figures += [
            pages.picture(_small(raw), raw.name, before, boxes),
            pages.picture(output / file, file, say(f"after: {note}", f"整理后：{note}")),
        ]
        if len(figures) >= 2 * PAIRS:
            break
    if not figures:
        return []
    return [
        pages.section(
            say("Before and after", "整理前后"),
            pages.paragraph(
                say(
                    "Those whose background was removed by a guess (GrabCut) come first: look at each.",
                    "靠猜测（GrabCut）去掉背景的排在最前面，请逐张检查。",
                )
                if guessed
                else say("Those that changed most come first.", "改动最大的排在前面。")
            ),
            pages.pictures(figures),
            *_more(len(worked), PAIRS),
        )
    ]


def _skipped(survey: Survey) -> list[Html]:
    blocks = []
    if survey.skipped:
        rows = list(survey.skipped.items())
        blocks.append(pages.table((say("file", "文件"), say("why", "原因")), rows[:200]))
        blocks += _more(len(rows), 200)
    blocks += [pages.paragraph(note) for note in survey.notes[:50]]
    return [pages.section(say("Skipped", "略过的文件"), *blocks)] if blocks else []
