"""The READMEs tell the truth: their files exist, both languages show the same."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh-CN.md")


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
