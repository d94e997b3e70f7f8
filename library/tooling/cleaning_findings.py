"""What a person should look at after prepare_images.py. To look for one thing more: add a function to CHECKS.

Each gives the images it is about, in words, and what to do about them; nothing is said where there are none.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from library.data.folders import some
from library.images import quality
from library.images.manifest import Record
from library.messages import say
from library.options.tools import PrepareImages
from library.reporting.findings import Finding
from library.tooling.raw_images import Group, Raw, Survey

MUCH_ENLARGED = 2.0  # times in each direction; three of four pixels are then made up


@dataclass
class Outcome:
    """All that a run found out and did."""

    survey: Survey
    groups: list[Group]
    mirrored: list[tuple[Raw, Raw]]
    left_out: dict[str, str]  # duplicates: name -> the one that was kept in its place
    records: dict[str, Record]  # of the images that were worked on, now or by an earlier run
    deleted: dict[str, list[str]]  # images that an earlier run made and that are gone: raw name -> files
    stale: dict[str, list[str]]  # files that are still there though their raw image is not worked on any more
    models: list[str] = field(default_factory=list)  # what does what, a line each
    next_steps: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[str]:
        """All clean images, without masks."""
        return [file for record in self.records.values() for file in record.report.get("size", {})]

    @property
    def worked(self) -> list[Raw]:
        """The raw images that were worked on."""
        return [raw for raw in self.survey.images if raw.name in self.records]

    @property
    def blurred(self) -> list[Raw]:
        return [raw for raw in self.worked if raw.blur >= quality.BLURRED]

    @property
    def noisy(self) -> list[Raw]:
        return [raw for raw in self.worked if raw.noise >= quality.NOISY]

    def reporting(self, key: str) -> list[str]:
        """Names of the raw images whose record tells something under this key."""
        return [name for name, record in self.records.items() if record.report.get(key)]


class Remark(NamedTuple):
    """Files that have something in common; there may be none."""

    names: Iterable[str]
    what: str
    cure: str = ""
    level: str = "amber"


def findings(outcome: Outcome, settings: PrepareImages) -> list[Finding]:
    """For the page and for the terminal."""
    found = []
    for check in CHECKS:
        names, what, cure, level = check(outcome, settings)
        if names := list(names):
            count, listed = len(names), some(names)
            text = say(f"{what}: {count} ({listed})", f"{what}：{count} 张（{listed}）")
            found.append(Finding(level, "pictures", text, cure))
    return found


def unusable(outcome: Outcome, settings: PrepareImages) -> Remark:
    return Remark(
        outcome.survey.skipped,
        say("could not be used", "无法使用"),
        say(
            "The summary lists the reasons; nothing in images_dir was changed",
            "原因见结果页；images_dir 里没有任何改动",
        ),
    )


def all_erased(outcome: Outcome, settings: PrepareImages) -> Remark:
    return Remark(
        outcome.reporting("gone"),
        say("nothing left after erasing", "擦除后什么也不剩"),
        say("Erase less, or leave them out", "请少擦一些，或不要用它们"),
    )


def blurred(outcome: Outcome, settings: PrepareImages) -> Remark:
    return Remark(
        [raw.name for raw in outcome.blurred],
        say("blurred", "模糊"),
        say(
            "A LoRA learns the blur too; check them in the summary and move poor ones out of images_dir",
            "LoRA 会连模糊一起学；请在结果页查看，把不好的移出 images_dir",
        ),
    )


def noisy(outcome: Outcome, settings: PrepareImages) -> Remark:
    if settings.denoise:
        cure = say("If noise remains, raise denoise", "如仍有噪点，请调高 denoise")
    else:
        cure = say(
            "denoise = 5 smooths them, and all others a little; or move them out of images_dir",
            "设 denoise = 5 可去噪，但其他图也会略微变糊；也可把它们移出 images_dir",
        )
    return Remark([raw.name for raw in outcome.noisy], say("noisy", "噪点多"), cure)


def is_much_enlarged(record: Record) -> bool:
    return max(record.report["enlarged"].values()) >= MUCH_ENLARGED


def much_enlarged(outcome: Outcome, settings: PrepareImages) -> Remark:
    return Remark(
        [name for name in outcome.reporting("enlarged") if is_much_enlarged(outcome.records[name])],
        say("enlarged more than twice in each direction", "边长放大到两倍以上"),
        say(
            "Most of the detail is invented; find larger versions, or leave them out",
            "画面大半是凭空补出来的，请换大图或不用",
        ),
        "red",
    )


def enlarged_without_model(outcome: Outcome, settings: PrepareImages) -> Remark:
    records = {name: outcome.records[name] for name in outcome.reporting("enlarged")}
    return Remark(
        [name for name, record in records.items() if not is_much_enlarged(record) and not record.report.get("by")],
        say("enlarged by Lanczos, which adds no detail", "用 Lanczos 放大，没有增加细节"),
        say(
            "Find larger versions, or put an upscaler such as RealESRGAN_x4plus.pth into a folder of models_dirs",
            "最好换大图；也可把 RealESRGAN_x4plus.pth 等超分辨率模型放进 models_dirs 所列目录",
        ),
    )


def small(outcome: Outcome, settings: PrepareImages) -> Remark:
    size = f"{settings.resolution} x {settings.resolution}"
    return Remark(
        [file for record in outcome.records.values() for file in record.report.get("small", ())],
        say(f"below {size} pixels, not enlarged", f"小于 {size} 像素，未放大"),
        say(
            'The trainer will enlarge them; find larger versions, or set upscale = "auto"',
            '训练时会被放大；请换大图，或设 upscale = "auto"',
        ),
    )


def text(outcome: Outcome, settings: PrepareImages) -> Remark:
    if settings.text == "erase":
        reports = {name: outcome.records[name].report for name in outcome.reporting("text")}
        return Remark(
            [name for name, report in reports.items() if len(report["text"]) > len(report.get("asks", ()))],
            say("text or watermarks erased", "擦除了文字或水印"),
            say("Check in the summary that the boxes were right", "请在结果页查看框得是否都对"),
        )
    return Remark(
        outcome.reporting("text"),
        say("may contain text or a watermark", "可能有文字或水印"),
        say(
            'If the boxes in the summary are right: text = "erase". If only some are: write those into a regions file',
            '如果结果页上的框都对，设 text = "erase"；只有部分对，请把它们写进 regions 文件',
        ),
    )


def text_to_ask_about(outcome: Outcome, settings: PrepareImages) -> Remark:
    return Remark(
        outcome.reporting("asks") if settings.text == "erase" else (),
        say(
            "text over a face or a large part of the image, not erased without your yes",
            "文字压在脸上或占画面较大，未经您同意不擦除",
        ),
        say(
            "Look at it in the summary; the lines there that you agree with go into a text file that regions names",
            "请看结果页；同意擦除的，把那里给出的行存成文本文件，再把 regions 设为该文件",
        ),
    )


def no_subject(outcome: Outcome, settings: PrepareImages) -> Remark:
    return Remark(
        outcome.reporting("doubtful"),
        say("no subject found, or one without its face; background kept", "没有找到主体，或主体丢了脸，背景保留"),
        say("Cut them out by hand, or leave them out", "请手动抠图，或不要用"),
    )


def lost_faces(outcome: Outcome, settings: PrepareImages) -> Remark:
    return Remark(
        outcome.reporting("lost"),
        say(
            "a face was erased with the background or by a region, and is not cut out", "有脸随背景或区域被擦除，未截取"
        ),
        say("If it was the subject's, erase less there", "如果那是主体的脸，请在该处少擦一些"),
    )


def no_face(outcome: Outcome, settings: PrepareImages) -> Remark:
    records = outcome.records
    if settings.faces == "keep":
        return Remark([], "")
    without = [name for name, record in records.items() if not record.report.get("faces")]
    cure = say("Where there is one, handle it manually", "有脸的请手动处理")
    if not any(record.report.get("face_model") for record in records.values()):
        cure += say(
            "; drawn faces need lbpcascade_animeface.xml or a YOLO face model in a folder of models_dirs",
            "；二次元脸需要在 models_dirs 所列目录放 lbpcascade_animeface.xml 或 YOLO 人脸模型",
        )
    if settings.faces in ("cut out", "recipe") and len(without) == len(records):
        what = say(
            "no face found in any image, so there is nothing to learn", "所有图片都没有找到人脸，没有可训练的内容"
        )
        return Remark(without, what, cure, "red")
    return Remark(without, say("no face found", "没有找到人脸"), cure)


def not_for_regularization(outcome: Outcome, settings: PrepareImages) -> Remark:
    names = [
        name
        for name, record in outcome.records.items()
        if settings.faces == "recipe" and not any(file.startswith("reg/") for file in record.files)
    ]
    what = say("too blurred or too small for reg; only their faces are used", "太糊或太小，不放入 reg，只用其中的脸")
    return Remark(names, what)


def animated(outcome: Outcome, settings: PrepareImages) -> Remark:
    names = [raw.name for raw in outcome.worked if raw.is_animated]
    return Remark(names, say("animated, only the first frame taken", "动图，只取第一帧"), level="green")


def deleted(outcome: Outcome, settings: PrepareImages) -> Remark:
    return Remark(
        [file for files in outcome.deleted.values() for file in files],
        say("deleted or moved since an earlier run, and not made again", "之前生成后被删除或移走，不再生成"),
        say("overwrite = True makes them again", "需要时设 overwrite = True 重新生成"),
        "green",
    )


def stale(outcome: Outcome, settings: PrepareImages) -> Remark:
    return Remark(
        [file for files in outcome.stale.values() for file in files],
        say(
            "left over from earlier runs; their raw images are gone, or skipped now",
            "以前生成的，其原图现已不在、被略过或判为重复",
        ),
        say("Delete them if you don't need them", "不需要的请自行删除"),
    )


CHECKS: tuple[Callable[[Outcome, PrepareImages], Remark], ...] = (
    unusable, all_erased, blurred, noisy, much_enlarged, enlarged_without_model, small, text,
    text_to_ask_about, no_subject, lost_faces, no_face, not_for_regularization, animated, deleted, stale,
)  # fmt: skip
