"""The READMEs and docs/ tell the truth: what they link to exists, both languages show the same, numbers are counted."""

import re
from pathlib import Path

import pytest

from library.options import scripts, sd_scripts
from library.options.training import OPTIONS

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh-CN.md")
PAGES = [*READMES, "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
PAIRS = [(page, page.replace(".md", ".zh-CN.md")) for page in PAGES if page.replace(".md", ".zh-CN.md") in PAGES]
LARGEST_README = 14_000  # bytes
LARGEST_IMAGE = 150_000


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def places(page: str) -> list[str]:
    """What a page links to or shows, as it stands there; other sites left out."""
    without_code = re.sub(r"```.*?```|`[^`]*`", "", read(page), flags=re.S)
    return [place for place in re.findall(r"\]\(([^)]+)\)", without_code) if "://" not in place]


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub makes them into anchors."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_images_lead_somewhere(page):
    for place in places(page):
        path, _, anchor = place.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), place
        assert not anchor or anchor in anchors(there), place


@pytest.mark.parametrize("page", PAGES)
def test_files_of_the_project_are_called_as_they_are(page):
    quoted = re.findall(r"`((?:library|tests|tools|docs)/[\w./-]+|[a-z_]+\.(?:py|toml))[ `:]", read(page))
    folders = ("", "library", "tools")
    foreign = {*scripts.TAKEN, *(name for place in scripts.PLACES for name in place.programs)}  # sd-scripts'
    named = [path for path in quoted if path not in foreign]
    assert [path for path in named if not any((ROOT / folder / path).exists() for folder in folders)] == []


def test_every_image_is_shown_somewhere_and_small():
    shown = {(ROOT / page).parent.joinpath(place).resolve() for page in PAGES for place in places(page)}
    images = [path for path in (ROOT / "docs" / "images").rglob("*") if path.is_file()]
    assert [path for path in images if path.resolve() not in shown] == []
    assert [path for path in images if path.stat().st_size > LARGEST_IMAGE] == []


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_show_the_same(english, chinese):
    texts = [read(page) for page in (english, chinese)]
    headings, code, images, rows = (
        [re.findall(pattern, text, re.M | re.S) for text in texts]
        for pattern in (r"^(#+) ", r"```bash\n(.*?)```", r"!\[[^\]]*\]\(([^)]+)", r"^\|")
    )
    assert headings[0] == headings[1]
    assert code[0] == code[1]
    assert images[0] == [image.replace(".zh-CN", "") for image in images[1]]
    assert len(rows[0]) == len(rows[1])


@pytest.mark.parametrize(("english", "chinese"), [pair for pair in PAIRS if "docs/parameters.md" not in pair])
def test_both_languages_name_the_same_commands_and_values(english, chinese):
    """Whatever stands between backticks: options, commands, files (but <name> and [concept] are translated)."""

    def quoted(page: str) -> set[str]:
        text = re.sub(r"```.*?```", "", read(page), flags=re.S)
        return {
            code
            for code in re.findall(r"`([^`]+)`", " ".join(text.split()))
            if code.isascii() and not set("<[") & set(code)
        }

    assert quoted(english) ^ quoted(chinese) == set()


@pytest.mark.parametrize("page", READMES)
def test_a_readme_is_read_in_one_sitting(page):
    text = read(page)
    assert len(text.encode()) < LARGEST_README
    first_cells = re.findall(r"^\| [*]*`(\w+)`", text, re.M)
    assert OPTIONS.keys().isdisjoint(first_cells), "tables of parameters stand in docs/parameters.md"


@pytest.mark.parametrize("page", READMES)
def test_a_readme_counts_the_parameters(page):
    counts = re.search(r"(\d+) (?:of the|个参数中的) (\d+)", read(page))
    assert sorted(map(int, counts.groups())) == [sum(option.in_block for option in OPTIONS.values()), len(OPTIONS)]


@pytest.mark.parametrize("page", ["docs/sd-scripts.md", "docs/sd-scripts.zh-CN.md"])
def test_the_flags_of_sd_scripts_are_counted(page):
    flags = (ROOT / "tests" / "golden" / "sd_scripts_flags.txt").read_text().split()
    renamed = sum(flag in sd_scripts.RENAMED or flag in sd_scripts.SWITCHES for flag in flags)
    idle = sum(flag in sd_scripts.WITHOUT_EFFECT for flag in flags)
    refused = sum(flag in sd_scripts.REFUSED for flag in flags)
    own = len(flags) - renamed - idle - refused
    sentence = re.search(r"\D(193\D.*?)\n\n", read(page), re.S).group(1)
    assert [int(number) for number in re.findall(r"\d+", sentence)][:5] == [len(flags), own, renamed, idle, refused]
