"""Sentences that no speaker would say, and that were replaced, do not come back.

What people read speaks the language of this field. One row is what stood there once; what to write is beside it.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for place in ("library", "tools", "tests", "docs")
    for path in (ROOT / place).rglob("*")
    if path.suffix in (".py", ".md", ".html", ".css", ".js") and path != Path(__file__)
) + [ROOT / "train_network.py", ROOT / "lora_train_command_line.py"]

ENGLISH = {
    "must be cured": "Fix this",
    "with its cure": "how to fix it",
    "Allow yourself": "You don't have permission to read this file. Change its permissions, or delete it.",
    "your own word": "trigger word",
    "not learnt but measured": "1 image is held out for validation",
    "as far as so few can tell": "One held-out image can't separate these epochs.",
    "have strayed less": "earlier ones stay closer to the base model",
    "tags go,": "3 captions would change: 3 tags added, 0 removed",
    "it goes before": "if set, overrides X",
    "bear text": "may contain text",
    "nothing was to do": "Nothing to do: everything is up to date.",
    "the rule holds": "Balanced: 318 training and 318 regularization samples.",
    "chance peculiarities": "its quirks are over-learned",
    "save it anew": "open it in an editor and save it again",
    "does not yet tell a good epoch": "A falling training loss alone doesn't mean a good epoch.",
    "The poorest": "Lowest quality",
    "LoRAs, tried": "LoRA test grid",
    "To train the same again": "Reproduce this run",
    "picture(s)": "plural(count, 'image')",
}
CHINESE = {
    "条标签有改动": "4 个标注文件有改动：删除 0 个标签，新增 4 个",
    "仍是自带的微型模型所用的": "底模还是自带的微型模型，请换成真正的底模",
    "死记的成分": "差距越大，过拟合越严重",
    "偶然特征会学得更重": "这张图容易被过度学习",
    "都不需要算两遍": "显存充足，未启用梯度检查点",
    "取决于抽到的噪声": "噪声随机，单点会波动，请看平滑线",
    "另一边又教成相反的": "否则两边互相抵消",
    "标签文件": "标注文件",
    "你的": "您的",
}


@pytest.mark.parametrize("phrase", [*ENGLISH, *CHINESE])
def test_a_sentence_that_was_replaced_stays_away(phrase):
    where = [str(path.relative_to(ROOT)) for path in SOURCES if phrase in path.read_text(encoding="utf-8")]
    assert not where, f"write {(ENGLISH | CHINESE)[phrase]!r}"


def test_the_reader_is_addressed_politely():
    """Names of files in tests may greet anybody."""
    texts = {path: path.read_text(encoding="utf-8").replace("你好", "") for path in SOURCES}
    assert not [
        str(path.relative_to(ROOT)) for path, text in texts.items() if "你" in text and "laboratory" not in str(path)
    ]


COUNTED = re.compile(
    r"\{(?:len\([^{}]*\)|\w*(?:count|total|number|steps|epochs)\w*)(?::,)?\} "
    r"(?:images|layers|captions|files|tags|steps|epochs|folders|samples|times|LoRAs|presets|values|blocks)\b"
)
NEVER_ONE = (
    "more than a concept",
    "one is expected",
    "Give each LoRA one",
    "table.names",
    "when_en",
    "of {block_count}",
    "> 1",
)


def test_what_is_counted_agrees_with_its_number():
    """ "1 images": `plural(count, "image")` says both."""
    lines = {
        f"{path.name}:{number}": line
        for path in SOURCES
        if path.suffix == ".py" and path.parent != ROOT / "tests" and "tests" not in path.parts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if COUNTED.search(line) and not any(words in line for words in NEVER_ONE)
    }
    assert {place: line.strip() for place, line in lines.items() if "benchmark" not in place} == {}
