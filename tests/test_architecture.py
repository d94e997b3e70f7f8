"""The one rule of the layout: a part imports the nouns, never another part. They meet in the assembly."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "library"
NOUNS = {"contracts", "config", "tool_config", "checks", "messages", "value_files"}
ASSEMBLY = "assembly"  # where parts meet, beside train_network.py and tools/; no part imports it
RECIPES = {"library/miniature/train_miniature.py"}  # made the built-in model once; puts parts together, as tools do


def part_of(file: Path) -> str:
    """The part that a file belongs to: its package or its module name below library/."""
    return file.relative_to(LIBRARY).with_suffix("").parts[0]


def imported_parts(source: str) -> set[str]:
    """Parts named by any import of the source, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError("relative imports hide what is imported: write library....")
    return {name.split(".")[1] for name in names if name.startswith("library.")}


FILES = [file for file in sorted(LIBRARY.rglob("*.py")) if file != LIBRARY / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(LIBRARY)))
def test_a_part_never_imports_another_part(file):
    if part_of(file) == ASSEMBLY or file.relative_to(ROOT).as_posix() in RECIPES:
        return
    allowed = NOUNS | {part_of(file)}
    if part_of(file) in NOUNS:
        allowed = NOUNS
    strangers = imported_parts(file.read_text(encoding="utf-8")) - allowed
    assert not strangers, f"{file.name} imports {strangers}: take the product as an argument instead"


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("from library.data import samples", {"data"}),
        ("from library import losses", {"losses"}),
        ("def f():\n    import library.families.sd as sd", {"families"}),
        ("import torch", set()),
    ],
)
def test_imports_are_seen_in_every_form(source, parts):
    assert imported_parts(source) == parts


def test_only_what_the_user_fixed_stands_at_the_top():
    programs = {file.name for file in ROOT.glob("*.py")}
    assert programs == {"lora_train_command_line.py", "train_network.py"}


def test_a_mistake_in_the_parameters_is_told_before_torch_is_imported():
    """The files read before the checks are done must not import torch: it takes seconds."""
    names = (
        "contracts",
        "config",
        "messages",
        "arguments",
        "kohya",
        "block",
        "cards",
        "processes",
        "value_files",
    )
    early = [ROOT / "train_network.py", *(LIBRARY / ASSEMBLY).glob("*.py"), *(LIBRARY / "checks").glob("*.py")]
    early += [*(LIBRARY / f"{name}.py" for name in names)]
    for file in early:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        tops = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        modules = {alias.name for node in tops if isinstance(node, ast.Import) for alias in node.names}
        modules |= {node.module for node in tops if isinstance(node, ast.ImportFrom)}
        assert not {module for module in modules if module.split(".")[0] in ("torch", "diffusers", "transformers")}
