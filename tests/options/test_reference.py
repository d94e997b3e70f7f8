"""docs/parameters*.md are what the declarations say."""

import pytest

from library.options import reference
from library.options.sd_scripts import RENAMED, SWITCHES
from library.options.tools import TOOLS
from library.options.training import OPTIONS


@pytest.mark.parametrize("language", reference.PAGES)
def test_the_page_is_what_the_options_declare(language):
    written = reference.PAGES[language].read_text(encoding="utf-8")
    assert written == reference.page(language), "run: python -m library.options"


@pytest.mark.parametrize("language", reference.PAGES)
def test_every_option_has_a_row_with_default_and_meaning(language):
    lines = reference.page(language).splitlines()
    tools = [option for declared in TOOLS.values() for option in declared.options.values()]
    for option in [*OPTIONS.values(), *tools]:
        rows = [line for line in lines if line.startswith((f"| `{option.name}` |", f"| **`{option.name}`** |"))]
        assert any(getattr(option, language).replace("|", "\\|") in row for row in rows), option.name
    assert sum(line.startswith("| ") and line.count(" | ") >= 3 for line in lines) > len(OPTIONS) + len(tools)
    assert all(f"| `{old}` |" in "\n".join(lines) for old in [*RENAMED, *SWITCHES])


@pytest.mark.parametrize(
    ("name", "english"),
    [
        ("clip_skip", "whole number, 1~12; `None`"),
        ("learning_rate", "number, > 0; `None`"),
        ("ema_decay", "number, > 0, ≤ 0.99999; `None`"),
        ("masked_loss", '`"auto"`, `True`, `False`'),
        ("flip_aug", "`True`, `False`"),
        ("train_data_dir", "folder"),
        ("train_batch_size", "whole number, ≥ 1"),
    ],
)
def test_values_and_limits_are_named(name, english):
    assert reference.values_of(OPTIONS[name], "english") == english
