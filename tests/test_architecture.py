"""The plan of the house (docs/architecture.md): who may import whom, and how large a room may be."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "library"
GROUND = {"contracts", "files", "text_encoding", "messages", "options", "start"}
ASSEMBLY = {"training", "tooling"}  # where packages meet, beside train_network.py and tools/; none of them imports it
EARLY = ["train_network.py", "library/training/*.py", "library/options/**/*.py", "library/contracts.py"]
EARLY += ["library/messages.py", "library/hardware/rocm.py", "library/hardware/distributed.py"]


def package_of(file: Path) -> str:
    """The package, or module of the ground floor, that a file below library/ belongs to."""
    return file.relative_to(LIBRARY).with_suffix("").parts[0]


def imported_names(source: str) -> set[str]:
    """Dotted names of all imports of the source, also inside functions; of `from a import b`: "a.b"."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError("relative imports hide what is imported: write library....")
    return names


def imported_packages(source: str) -> set[str]:
    """Packages of library/ that the source imports."""
    return {name.split(".")[1] for name in imported_names(source) if name.startswith("library.")}


def module_of(name: str) -> Path | None:
    """The file of library/ that an imported name comes from; None: it is none of ours."""
    path = ROOT.joinpath(*name.split("."))
    for file in (
        path.with_suffix(".py"),
        path / "__init__.py",
        path.parent.with_suffix(".py"),
        path.parent / "__init__.py",
    ):
        if file.is_file() and LIBRARY in file.parents:
            return file
    return None


FILES = [file for file in sorted(LIBRARY.rglob("*.py")) if file != LIBRARY / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(LIBRARY)))
def test_a_package_imports_the_ground_floor_and_never_a_sibling(file):
    package = package_of(file)
    if package in ASSEMBLY:
        return
    strangers = imported_packages(file.read_text(encoding="utf-8")) - GROUND - {package}
    assert not strangers, f"{file.name} imports {strangers}: take the product as an argument instead"


def test_there_is_no_circle_anywhere():
    imports = {
        file: {module_of(name) for name in imported_names(file.read_text(encoding="utf-8"))} - {None, file}
        for file in FILES
    }
    done: set[Path] = set()

    def visit(file: Path, way: list[Path]) -> None:
        assert file not in way, " -> ".join(str(one.relative_to(LIBRARY)) for one in [*way, file])
        if file not in done:
            for other in sorted(imports.get(file, ())):
                visit(other, [*way, file])
            done.add(file)

    for file in FILES:
        visit(file, [])


@pytest.mark.parametrize(
    ("source", "packages"),
    [
        ("from library.data import samples", {"data"}),
        ("from library import losses", {"losses"}),
        ("def f():\n    import library.families.sd as sd", {"families"}),
        ("import torch", set()),
    ],
)
def test_imports_are_seen_in_every_form(source, packages):
    assert imported_packages(source) == packages


def test_only_what_the_user_fixed_stands_at_the_top():
    programs = {file.name for file in ROOT.glob("*.py")}
    assert programs == {"lora_train_command_line.py", "train_network.py"}
    assert {file.stem for file in LIBRARY.glob("*.py")} <= GROUND | {"__init__"}


def test_a_mistake_in_the_parameters_is_told_before_torch_is_imported():
    """The files read before the checks are done must not import torch: it takes seconds."""
    for file in (file for pattern in EARLY for file in ROOT.glob(pattern)):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        tops = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        modules = {alias.name for node in tops if isinstance(node, ast.Import) for alias in node.names}
        modules |= {node.module for node in tops if isinstance(node, ast.ImportFrom)}
        assert not {module for module in modules if module.split(".")[0] in ("torch", "diffusers", "transformers")}


def test_the_page_about_the_house_names_every_package_and_nothing_that_is_not_there():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    quoted = set(re.findall(r"`([^`\s]+)`", page))
    packages = {f"library/{folder.name}/" for folder in LIBRARY.iterdir() if (folder / "__init__.py").is_file()}
    modules = {f"library/{file.name}" for file in LIBRARY.glob("*.py") if file.stem != "__init__"}
    programs = {file.name for file in ROOT.glob("*.py")} | {"tools/"}
    assert packages | modules | programs <= quoted
    for place in quoted:
        path, _, name = place.partition(":")
        if not re.search(r"/|[.]py$", path) or path == "path":
            continue
        assert (ROOT / path).exists(), place
        if name:
            tops = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
            targets = [target for node in tops if isinstance(node, ast.Assign) for target in node.targets]
            targets += [node.target for node in tops if isinstance(node, ast.AnnAssign)]
            defined = {target.id for target in targets if isinstance(target, ast.Name)}
            defined |= {node.name for node in tops if isinstance(node, ast.FunctionDef | ast.ClassDef)}
            assert name in defined, place


@pytest.mark.parametrize("file", [*FILES, *(ROOT / "tools").glob("*.py")], ids=lambda file: file.stem)
def test_html_stands_in_templates_and_in_no_string(file):
    if file.name == "charts.py":  # draws SVG
        return
    texts = [
        node.value for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Constant)
    ]
    markup = (
        "</?(a|b|body|br|code|details|div|figure|h[1-6]|html|img|p|pre|script|section|span|style|table|td|th|tr)[ >/]"
    )
    assert not [text for text in texts if isinstance(text, str) and re.search(markup, text)]
