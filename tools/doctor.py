"""One page over everything: pictures, tags, buckets, regularization, parameters, machine; what is wrong and how to
cure it. It reads lora_train_command_line.py and trains nothing. Run this file; it takes no arguments.

一页看清全部：图片、标签、分桶、正则化、参数、机器，哪里有问题、怎么解决。它读取 lora_train_command_line.py，不训练。
直接运行本文件，不需要任何命令行参数。
"""

# Values are Python: 512, 10 * 2, 1e-4, "text", True, False, None (not given).
# Windows paths need the r: r"D:\pictures\train", or / for \: "D:/pictures/train".
# A SyntaxError at the start: look in the line it names for a missing quote, or for “ ” ， in place of " ,
#
# 参数值用 Python 写法：512、10 * 2、1e-4、"文字"、True、False、None（不填）。
# Windows 路径前面要加 r：r"D:\图片\训练集"，或用 / 代替 \："D:/图片/训练集"。
# 启动时报 SyntaxError：请看它指出的那一行，是否漏了引号，或用了中文标点 “ ” ，
#
# fmt: off

# ---- Often changed | 经常修改 ----
script = "lora_train_command_line.py"  # the file whose parameters are looked at: a copy of lora_train_command_line.py, or a .toml of train_network.py | 要检查的参数文件：lora_train_command_line.py 或它的副本，也可以是 train_network.py 的 .toml

# ---- Seldom changed | 较少修改 ----
similarity = 6        # how many of 64 hash bits may differ in the same picture, usually 4~10 | 判为同一张图时 64 位哈希允许不同的位数，常用 4~10
check_machine = True  # also look at the device; imports torch, which takes some seconds | 同时检查设备；需要导入 torch，耗时数秒

# ---- Output | 输出 ----
language = "auto"             # language of the messages: "auto" (by the system), "en", "zh" | 提示语言："auto"（按系统）、"en"、"zh"
output_dir = "output/doctor"  # where the page goes | 结果页的输出目录

# fmt: on
# ---- Do not edit below | 请勿修改下方内容 ----

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.messages import say
from library.options import parameter_block
from library.options.tools import TOOLS, Doctor

MOST_SHOWN = 12  # pictures of one finding
MOST_TAGS = 40


def main() -> int:
    return parameter_block.run_tool(__file__, globals(), TOOLS["doctor.py"], examine)


def examine(settings: Doctor) -> int:
    """Look at everything, write the page, and say in short what was found."""
    from functools import partial

    from tqdm import tqdm

    from library.reporting import findings, pages
    from library.tooling.preflight import examine

    seen = examine(
        Path(settings.script),
        similarity=settings.similarity,
        with_machine=settings.check_machine,
        progress=partial(tqdm, disable=None, desc=say("pictures", "图片")),
    )
    path = pages.write(Path(settings.output_dir) / "doctor.html", page_of(settings, seen))
    counts = findings.count(seen.findings)
    for finding in seen.findings:
        if finding.level != "green":  # what is red with its cure, the rest in short
            text = finding.line if finding.level == "red" else finding.text
            print(f"{say(*pages.LEVELS[finding.level])}{say(': ', '：')}{text}")
    print(
        say(
            f"{settings.script}: {counts['red']} red, {counts['amber']} amber, {counts['green']} green",
            f"{settings.script}：红色 {counts['red']} 项，黄色 {counts['amber']} 项，绿色 {counts['green']} 项",
        )
    )
    print(say(f"all with pictures: {path}", f"全部结果（附图片）：{path}"))
    return 0


def page_of(settings: Doctor, seen) -> str:
    """Everything on one page: what matters in numbers, then topic by topic."""
    from library.reporting import findings, pages

    counts = findings.count(seen.findings)
    numbers = {say(*pages.LEVELS["red"]): counts["red"], say(*pages.LEVELS["amber"]): counts["amber"]}
    if seen.plan:
        found = seen.plan.found
        numbers |= {
            say("pictures", "图片"): len(found.train),
            say("regularization", "正则化"): len(found.regularization),
            say("epochs", "轮数"): seen.plan.epoch_count,
            say("steps", "步数"): f"{seen.plan.step_count:,}",
        }
    blocks = [pages.paragraph(settings.script, faint=True), pages.facts(numbers)]
    for topic, name in findings.TOPICS.items():
        of_topic = [finding for finding in seen.findings if finding.topic == topic]
        shown = [part for finding in of_topic for part in block_of(finding)]
        tables = {"pictures": bucket_table, "captions": tag_table, "machine": memory_table}
        if topic in tables and (table := tables[topic](seen)):
            shown.append(table)
        if shown:
            blocks.append(pages.section(say(*name), *shown))
    return pages.page(say("Doctor", "训练体检"), *blocks)


def block_of(finding) -> list:
    """A finding, and below it its pictures."""
    from library.reporting import pages

    parts = [pages.finding(finding.level, finding.text, finding.cure)]
    shown = [pages.picture(path, path.name, path.parent.name) for path in finding.pictures[:MOST_SHOWN]]
    rest = len(finding.pictures) - len(shown)
    if shown:
        parts.append(pages.pictures(shown))
    if rest > 0:
        parts.append(pages.paragraph(say(f"and {rest:,} more", f"另有 {rest:,} 张未显示"), faint=True))
    return parts


def bucket_table(seen) -> str:
    """How many pictures and batches of each size an epoch has."""
    from library.data.plan import uses_of_epoch
    from library.reporting import pages

    if not seen.plan:
        return ""
    rows: dict[tuple[int, int], list[int]] = {}
    for sample, count in uses_of_epoch(seen.plan, 1):
        row = rows.setdefault(seen.plan.fit(sample).bucket, [0, 0, 0])
        row[sample.is_regularization] += 1
        row[2] += count
    head = [
        say("bucket", "桶"),
        say("training pictures", "训练图片"),
        say("regularization", "正则化图片"),
        say("samples per epoch", "每轮样本"),
        say("batches", "批次"),
    ]
    size = seen.plan.batch_size
    body = [[f"{width} x {height}", *row, -(-row[2] // size)] for (width, height), row in sorted(rows.items())]
    return pages.join([pages.paragraph(say("Buckets of an epoch:", "每轮的分桶：")), pages.table(head, body)])


def tag_table(seen) -> str:
    """The most frequent tags, and what will become of them."""
    from library.data import tag_statistics
    from library.reporting import pages

    if not seen.statistics:
        return ""
    words = {folder.name: folder.text for folder in seen.plan.found.folders if not folder.is_regularization}
    word = next(iter(words.values())) if len(set(words.values())) == 1 else None
    tags = list(seen.statistics.tags.values())
    rows = [
        [tag.text, seen.statistics.count(tag), f"{seen.statistics.share(tag):.0%}",
         tag_statistics.fate(seen.statistics, tag, word)] for tag in tags[:MOST_TAGS]
    ]  # fmt: skip
    head = [
        say("tag", "标签"),
        say("pictures", "图片"),
        say("share", "占比"),
        say("what will become of it", "训练后会怎样"),
    ]
    shown = say(f"The {len(rows)} most frequent of {len(tags)} tags", f"{len(tags)} 个标签中最常见的 {len(rows)} 个")
    return pages.folded(shown, pages.table(head, rows))


def memory_table(seen) -> str:
    from library.reporting import pages

    if not seen.memory:
        return ""
    return pages.folded(
        say("What the run will hold in memory", "训练占用的内存明细"), pages.code(seen.memory.strip("\n"))
    )


if __name__ == "__main__":
    raise SystemExit(main())
