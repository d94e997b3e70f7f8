"""The whole way: three edits in one file, and sixty messy images go through the tools into a LoRA and images of it."""

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
    # the three edits, and what makes it quick
    edit_block(
        person.home / "lora_train_command_line.py",
        pretrained_model_name_or_path=MODEL,
        images_dir="收集的 pictures",
        trigger_word="ohwx",
    )
    edit_block(person.home / "lora_train_command_line.py", max_train_epochs=2, device="cpu", sample_every_n_epochs=0)
    person.runs("tools/prepare_images.py", text="erase")
    person.runs("tools/tag_images.py", tagger=None)
    person.runs("tools/edit_tags.py", delete_tags=["teal*"])
    person.runs("tools/sort_into_folders.py", target_steps=150)
    person.runs("tools/edit_tags.py", action="apply")
    deleted = images(person.home / "output" / "prepared")[-1]
    deleted.unlink()
    person.deleted = deleted.name
    person.runs("tools/sort_into_folders.py")
    person.runs("tools/make_reg_images.py", steps=4, class_words="red circle", device="cpu")
    person.runs("tools/doctor.py")
    person.runs("lora_train_command_line.py")
    person.runs("tools/try_lora.py", steps=4, device="cpu")
    return person


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def images(folder: Path) -> list[Path]:
    aside = {"masks", ".removed"}
    return sorted(path for path in folder.rglob("*.png") if aside.isdisjoint(path.parts))


@pytest.mark.slow("prepares sixty pictures and trains")
def test_what_cannot_be_used_is_named_and_the_rest_is_prepared(person):
    said = person.said["tools/prepare_images.py"]
    counts = Counter(person.made.values())
    broken = [name for name, kind in person.made.items() if kind in ("truncated", "empty", "not an image", "elongated")]
    assert all(Path(name).name in said for name in broken)
    unique = len(person.made) - counts["duplicate"] - len(broken)
    assert (
        len(images(person.home / "output" / "prepared")) == unique - 2
    )  # one was deleted there, and two are the same in two frames


@pytest.mark.slow("prepares sixty pictures and trains")
def test_every_image_has_a_caption_that_begins_with_the_trigger_word(person):
    train = images(person.home / "output" / "train")
    captions = [path.with_suffix(".txt").read_text(encoding="utf-8") for path in train]
    assert len(train) == len(images(person.home / "output" / "prepared"))
    assert all(caption.startswith("ohwx") for caption in captions)
    assert sum("角色" in caption for caption in captions) == 2  # from files in GBK


@pytest.mark.slow("prepares sixty pictures and trains")
def test_stamps_are_erased_and_masked(person):
    masks = list((person.home / "output" / "train").rglob("masks/*.png"))
    stamped = [path for path in masks if "stamped" in path.name]
    assert len(stamped) >= 3  # of five; what lies over the figure is a person's to decide
    for path in stamped:
        darkest, lightest = Image.open(path).convert("L").getextrema()
        assert (darkest, lightest) == (0, 255)


@pytest.mark.slow("prepares sixty pictures and trains")
def test_a_regularization_image_belongs_to_every_training_image(person):
    train, reg = images(person.home / "output" / "train"), images(person.home / "output" / "reg")
    assert len(reg) == len(train)
    assert not any("ohwx" in path.with_suffix(".txt").read_text(encoding="utf-8") for path in reg)


@pytest.mark.slow("prepares sixty pictures and trains")
def test_the_lora_and_its_grid_are_there(person):
    assert (person.home / "output" / "ohwx.safetensors").stat().st_size > 100_000
    assert "1 problem" not in person.said["lora_train_command_line.py"]
    assert list((person.home / "output" / "tried").rglob("*.png"))


@pytest.mark.slow("prepares sixty pictures and trains")
def test_an_image_deleted_where_it_is_looked_at_is_not_trained(person):
    assert person.deleted not in {path.name for path in images(person.home / "output" / "train")}


@pytest.mark.slow("prepares sixty pictures and trains")
def test_each_script_says_what_it_takes_from_the_one_file(person):
    for file in ("prepare_images", "tag_images", "sort_into_folders", "make_reg_images", "try_lora"):
        assert "from lora_train_command_line.py: " in person.said[f"tools/{file}.py"], file
    assert "trigger word ohwx" in person.said["tools/sort_into_folders.py"]
    assert "raw images 收集的 pictures" in person.said["tools/prepare_images.py"]
    assert 'train_data_dir = "auto"' in person.said["lora_train_command_line.py"]


@pytest.mark.slow("prepares sixty pictures and trains")
def test_the_raw_images_are_as_they_were(person):
    assert len(person.raw) >= len(person.made)
    assert contents(person.home / "收集的 pictures") == person.raw
