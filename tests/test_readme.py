"""The READMEs tell the truth: their parameter tables are config's, their files exist, both languages show the same.

After changing options: python -m tests.test_readme
"""

import re
from pathlib import Path

import pytest

from library.options.parameter_block import literal
from library.options.training import GROUPS, OPTIONS

ROOT = Path(__file__).parent.parent
READMES = {"README.md": "english", "README.zh-CN.md": "chinese"}
BEGIN, END = "<!-- parameters -->\n", "<!-- end of parameters -->"


def table(language: str) -> str:
    """Every option by group: name, default, meaning."""
    heads = {"english": "parameter | default | meaning", "chinese": "参数 | 默认值 | 含义"}
    lines = []
    for group, texts in GROUPS.items():
        lines += [
            f"**{texts[0] if language == 'english' else texts[1]}**",
            "",
            f"| {heads[language]} |",
            "|---|---|---|",
        ]
        for name, option in OPTIONS.items():
            if option.group == group:
                meaning = getattr(option, language).replace("|", "\\|")
                lines.append(f"| `{name}` | `{literal(option.default)}` | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def with_table(text: str, language: str) -> str:
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n" + table(language) + "\n" + END + rest.partition(END)[2]


@pytest.mark.parametrize("name", READMES)
def test_the_parameter_table_is_that_of_the_program(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text == with_table(text, READMES[name]), "run: python -m tests.test_readme"


@pytest.mark.parametrize("name", READMES)
def test_links_and_pictures_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    places = [place for place in re.findall(r"\]\(([^)#]+)", text) if "://" not in place]
    assert len(places) > 3
    assert [place for place in places if not (ROOT / place).exists()] == []


def test_both_readmes_show_the_same_commands_and_sections():
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in READMES)
    assert re.findall(r"^(#+) ", english, re.M) == re.findall(r"^(#+) ", chinese, re.M)
    assert re.findall(r"```bash\n(.*?)```", english, re.S) == re.findall(r"```bash\n(.*?)```", chinese, re.S)
    assert re.findall(r"!\[[^\]]*\]\(([^)]+)", english) == re.findall(r"!\[[^\]]*\]\(([^)]+)", chinese)


if __name__ == "__main__":
    for name, language in READMES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        (ROOT / name).write_text(with_table(text, language), encoding="utf-8")
