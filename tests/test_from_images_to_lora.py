"""The whole way: sixty messy images through the tools into a LoRA and images of it, editing only the blocks."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from library.options.declaration import PROJECT
from tests import messy_images
from tests.conftest import edit_block
from tests.scripts import Script

MODEL = str(PROJECT / "library" / "miniature" / "model")


class Person:
    """Somebody with a copy of the project, who edits blocks and starts scripts.

    Args:
        home: an empty folder.
    """

    def __init__(self, home: Path):
        self.home = home
        (home / "tools").mkdir()
        (home / "library").symlink_to(PROJECT / "library")
        shutil.copy(PROJECT / "train_network.py", home)
        shutil.copy(PROJECT / "lora_train_command_line.py", home)
        for tool in (PROJECT / "tools").glob("*.py"):
            shutil.copy(tool, home / "tools")
        self.said: dict[str, str] = {}

    def runs(self, file: str, /, **settings: object) -> str:
        """Edit the block of a script, start it, and give what it printed; it must not fail."""
        edit_block(self.home / file, language="en", **settings)
        code, self.said[file] = Script(self.home / file, folder=self.home).ended(600)
        assert code == 0, f"{file}:\n{self.said[file]}"
        return self.said[file]


@pytest.fixture(scope="module")
def person(tmp_path_factory):
    person = Person(tmp_path_factory.mktemp("person"))
    person.made = messy_images.make(person.home / "收集的 pictures")
    person.raw = contents(person.home / "收集的 pictures")
    at = {name: str(person.home / name) for name in ("prepared", "train", "reg", "out", "tried", "page")}
    person.runs(
        "tools/prepare_images.py",
        images_dir=str(person.home / "收集的 pictures"),
        output_dir=at["prepared"],
        resolution=64,
        text="erase",
    )
    tags = dict(images_dir=at["prepared"], output_dir=at["page"], tagger=None, existing="add")
    person.runs("tools/tag_images.py", **tags)
    edits = dict(images_dir=at["prepared"], output_dir=at["page"], delete_tags=["teal*"], action="show")
    person.runs("tools/edit_tags.py", **edits)
    person.runs("tools/edit_tags.py", **(edits | {"action": "apply", "delete_tags": None}))
    person.runs("tools/sort_into_folders.py", images_dir=at["prepared"], output_dir=at["train"], target_steps=150)
    person.runs(
        "tools/make_reg_images.py",
        train_data_dir=at["train"],
        output_dir=at["reg"],
        steps=4,
        class_words="red circle",
        device="cpu",
    )
    training = dict(train_data_dir=at["train"], reg_data_dir=at["reg"], output_dir=at["out"], max_train_epochs=2)
    edit_block(person.home / "lora_train_command_line.py", **training, device="cpu", sample_every_n_epochs=0)
    person.runs("tools/doctor.py", script=str(person.home / "lora_train_command_line.py"), output_dir=at["page"])
    person.runs("lora_train_command_line.py")
    person.runs(
        "tools/try_lora.py",
        loras=[str(person.home / "out" / "mytag.safetensors")],
        prompts=["mytag, standing, white background", "(red circle:1.2)"],
        output_dir=at["tried"],
        steps=4,
        device="cpu",
    )
    return person


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.png") if "masks" not in path.parts)


@pytest.mark.slow("prepares sixty pictures and trains")
def test_what_cannot_be_used_is_named_and_the_rest_is_prepared(person):
    said = person.said["tools/prepare_images.py"]
    counts = Counter(person.made.values())
    broken = [name for name, kind in person.made.items() if kind in ("truncated", "empty", "not an image", "elongated")]
    assert all(Path(name).name in said for name in broken)
    unique = len(person.made) - counts["duplicate"] - len(broken)
    assert len(images(person.home / "prepared")) == unique


@pytest.mark.slow("prepares sixty pictures and trains")
def test_every_image_has_a_caption_that_begins_with_the_trigger_word(person):
    train = images(person.home / "train")
    captions = [path.with_suffix(".txt").read_text(encoding="utf-8") for path in train]
    assert len(train) == len(images(person.home / "prepared"))
    assert all(caption.startswith("mytag") for caption in captions)
    assert sum("角色" in caption for caption in captions) == 2  # from files in GBK


@pytest.mark.slow("prepares sixty pictures and trains")
def test_stamps_are_erased_and_masked(person):
    masks = list((person.home / "train").rglob("masks/*.png"))
    stamped = [path for path in masks if "stamped" in path.name]
    assert len(stamped) >= 4
    for path in stamped:
        darkest, lightest = Image.open(path).convert("L").getextrema()
        assert (darkest, lightest) == (0, 255)


@pytest.mark.slow("prepares sixty pictures and trains")
def test_a_regularization_image_belongs_to_every_training_image(person):
    train, reg = images(person.home / "train"), images(person.home / "reg")
    assert len(reg) == len(train)
    assert not any("mytag" in path.with_suffix(".txt").read_text(encoding="utf-8") for path in reg)


@pytest.mark.slow("prepares sixty pictures and trains")
def test_the_lora_and_its_grid_are_there(person):
    assert (person.home / "out" / "mytag.safetensors").stat().st_size > 100_000
    assert "1 problem" not in person.said["lora_train_command_line.py"]
    assert list((person.home / "tried").rglob("*.png"))


@pytest.mark.slow("prepares sixty pictures and trains")
def test_the_raw_images_are_as_they_were(person):
    assert len(person.raw) >= len(person.made)
    assert contents(person.home / "收集的 pictures") == person.raw
