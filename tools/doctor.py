"""One page over everything: images, tags, buckets, regularization, parameters, machine; what is wrong and how to
cure it. It reads lora_train_command_line.py and trains nothing. Run this file; it takes no arguments.

一页看清全部：图片、标签、分桶、正则化、参数、机器，哪里有问题、怎么解决。它读取 lora_train_command_line.py，不训练。
直接运行本文件，不需要任何命令行参数。
"""

# Values are Python: 512, 10 * 2, 1e-4, "text", True, False, None (not given).
# Windows paths need the r: r"D:\pictures\train", or / for \: "D:/pictures/train".
# SyntaxError at the start? A missing quote, “ ” ， for " , or \ without r: python tools/doctor.py says which.
#
# 参数值用 Python 写法：512、10 * 2、1e-4、"文字"、True、False、None（不填）。
# Windows 路径前面要加 r：r"D:\图片\训练集"，或用 / 代替 \："D:/图片/训练集"。
# 启动时报 SyntaxError？多半是漏了引号、用了中文标点 “ ” ， 或路径没加 r：python tools/doctor.py 会用中文指出来。
#
# fmt: off

# ---- Often changed | 经常修改 ----
script = r"lora_train_command_line.py"  # the file whose parameters are checked: a copy of lora_train_command_line.py, or a .toml of train_network.py | 要检查的参数文件：lora_train_command_line.py 或它的副本，也可以是 train_network.py 的 .toml

# ---- Seldom changed | 较少修改 ----
similarity = 6        # how many of 64 hash bits may differ in the same image, usually 4~10 | 判为同一张图时 64 位哈希允许不同的位数，常用 4~10
check_machine = True  # also check the device; imports torch, which takes a few seconds | 同时检查设备；需要导入 torch，耗时数秒

# ---- Output | 输出 ----
language = "auto"    # language of the messages: "auto" (by the system), "en", "zh" | 提示语言："auto"（按系统）、"en"、"zh"
open_pages = "auto"  # open the page in the browser at the end: "auto" where there is a screen, True, False | 结束时在浏览器里打开结果页："auto" 有屏幕时打开，True，False
output_dir = None    # where the page goes; None: output/doctor | 结果页的输出目录；None 表示 output/doctor

# fmt: on
# ---- Do not edit below | 请勿修改下方内容 ----

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.messages import log, say
from library.options import parameter_block
from library.options.tools import TOOLS, Doctor
from library.reporting import desktop, findings, pages
from library.reporting.findings import Finding

if TYPE_CHECKING:
    from library.tooling.preflight import Examination

MOST_SHOWN = 12  # images of one finding
MOST_TAGS = 40


def main() -> int:
    return parameter_block.run_tool(__file__, globals(), TOOLS["doctor.py"], examine)


def examine(settings: Doctor) -> int:
    """Look at everything, write the page, and say in short what was found."""
    from functools import partial

    from tqdm import tqdm

    from library.tooling.preflight import examine

    seen = examine(
        Path(settings.script),
        similarity=settings.similarity,
        with_machine=settings.check_machine,
        progress=partial(tqdm, disable=None, desc=say("images", "图片")),
    )
    path = pages.write(Path(settings.output_dir) / "doctor.html", pages.render("doctor.html", page_of(settings, seen)))
    counts = findings.count(seen.findings)
    for finding in seen.findings:
        if finding.level != "green":  # what is red says how to fix it, the rest in short
            text = finding.line if finding.level == "red" else finding.text
            log.info(f"{findings.level_name(finding.level)}{say(': ', '：')}{text}")
    log.info(
        say(
            f"{settings.script}: {counts['red']} red, {counts['amber']} amber, {counts['green']} green",
            f"{settings.script}：红色 {counts['red']} 项，黄色 {counts['amber']} 项，绿色 {counts['green']} 项",
        )
    )
    log.info(say(f"full report with images: {path}", f"全部结果（附图片）：{path}"))
    desktop.open_page(path, settings.open_pages)
    if seen.system:
        log.info(seen.system)
    return 0


class ShownFinding(NamedTuple):
    """A finding with the first of its images."""

    level: str
    text: str
    cure: str
    figures: list[pages.Figure]
    image_count: int


class Topic(NamedTuple):
    """A section of the page."""

    name: str  # a key of findings.TOPICS
    heading: str
    findings: list[ShownFinding]


class BucketRow(NamedTuple):
    """What an epoch has of one size."""

    size: str
    train_count: int
    regularization_count: int
    sample_count: int
    batch_count: int


class TagRow(NamedTuple):
    """A tag, and what will become of it."""

    tag: str
    count: int
    share: str
    fate: str


class DoctorPage(NamedTuple):
    """What templates/doctor.html shows."""

    script: str
    numbers: dict[str, object]
    topics: list[Topic]
    buckets: list[BucketRow]
    tags: list[TagRow]  # the most frequent
    tag_count: int
    memory: str  # a table; "": not known


def page_of(settings: Doctor, seen: "Examination") -> DoctorPage:
    """What matters in numbers, then topic by topic."""
    counts = findings.count(seen.findings)
    numbers: dict[str, object] = {findings.level_name(level): counts[level] for level in ("red", "amber")}
    if seen.plan:
        found = seen.plan.samples
        numbers |= {
            say("images", "图片"): len(found.train),
            say("regularization", "正则化"): len(found.regularization),
            say("epochs", "轮数"): seen.plan.epoch_count,
            say("steps", "步数"): f"{seen.plan.step_count:,}",
        }
    tables = {"pictures": seen.plan, "captions": seen.statistics, "machine": seen.memory}  # topics that have one
    topics = []
    for name, heading in findings.TOPICS.items():
        shown = [shown_finding(finding) for finding in seen.findings if finding.topic == name]
        if shown or tables.get(name):
            topics.append(Topic(name, say(*heading), shown))
    return DoctorPage(
        script=settings.script,
        numbers=numbers,
        topics=topics,
        buckets=bucket_rows(seen),
        tags=tag_rows(seen),
        tag_count=len(seen.statistics.tags) if seen.statistics else 0,
        memory=seen.memory.strip("\n"),
    )


def shown_finding(finding: Finding) -> ShownFinding:
    figures = [pages.figure_of(path, path.name, path.parent.name) for path in finding.images[:MOST_SHOWN]]
    return ShownFinding(finding.level, finding.text, finding.cure, figures, len(finding.images))


def bucket_rows(seen: "Examination") -> list[BucketRow]:
    """How many images and batches of each size an epoch has."""
    from library.data.plan import uses_of_epoch

    if not seen.plan:
        return []
    counts: dict[tuple[int, int], list[int]] = {}  # of training and regularization images, and of samples
    for sample, count in uses_of_epoch(seen.plan, 1):
        row = counts.setdefault(seen.plan.fit(sample).bucket, [0, 0, 0])
        row[sample.is_regularization] += 1
        row[2] += count
    return [
        BucketRow(f"{width} x {height}", train, regularization, samples, -(-samples // seen.plan.batch_size))
        for (width, height), (train, regularization, samples) in sorted(counts.items())
    ]


def tag_rows(seen: "Examination") -> list[TagRow]:
    """The most frequent tags, and what will become of them."""
    from library.data import tag_statistics

    statistics = seen.statistics
    if not statistics:
        return []
    words = {folder.name: folder.text for folder in seen.plan.samples.folders if not folder.is_regularization}
    word = next(iter(words.values())) if len(set(words.values())) == 1 else None
    return [
        TagRow(
            tag.text,
            statistics.count(tag),
            f"{statistics.share(tag):.0%}",
            tag_statistics.fate(statistics, tag, word),
        )
        for tag in list(statistics.tags.values())[:MOST_TAGS]
    ]


if __name__ == "__main__":
    raise SystemExit(main())
