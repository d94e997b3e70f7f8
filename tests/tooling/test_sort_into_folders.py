"""tools/sort_into_folders.py: the right folder for each file, nothing written over, nothing to do the second time."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
from PIL import Image

from library.data import folder_sorting, samples
from library.messages import Stopped, UserError, set_language
from library.options.checks import ConfigError, check_tool
from library.options.declaration import PROJECT
from library.options.tools import TOOLS
from tools import sort_into_folders


def draw(folder, names, caption="mytag, hat", masks=()):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (hash(name) % 256, 40, 90)).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(f"{caption}, {path.stem}", encoding="utf-8")
    for name in masks:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), 255).save(path)
    return folder


@pytest.fixture
def image_folder(tmp_path):
    """Six images of one concept, one in a sub-folder by source, one mask."""
    names = ["a.png", "b.png", "照片（1）.png", "naïve café.png", "x.y.png", "手机/IMG 1.png"]
    return draw(tmp_path / "image_folder", names, masks=["masks/a.png", "手机/Masks/IMG 1.png"])


def run(image_folder, capsys=None, **values):
    values = {"images_dir": str(image_folder), "output_dir": str(image_folder.parent / "train")} | values
    assert sort_into_folders.run(check_tool(TOOLS["sort_into_folders.py"], values, {})) == 0
    return capsys.readouterr().out if capsys else ""


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".backup" not in path.parts and path.suffix != ".html" and path.name != ".sorted.json"
    }


ALL = {
    "a.png", "a.txt", "b.png", "b.txt", "照片（1）.png", "照片（1）.txt", "naïve café.png", "naïve café.txt", "x.y.png",
    "x.y.txt", "手机 IMG 1.png", "手机 IMG 1.txt", "masks/a.png", "masks/手机 IMG 1.png",
}  # fmt: skip


@pytest.mark.parametrize("action", ["copy", "link", "move"])
def test_images_captions_and_masks_go_into_one_folder(image_folder, capsys, action):
    before = files(image_folder)
    said = run(image_folder, capsys, action=action, repeats=6)
    after = files(image_folder.parent / "train")
    assert set(after) == {f"6_mytag/{name}" for name in ALL}
    assert after["6_mytag/手机 IMG 1.txt"] == before["手机/IMG 1.txt"]
    assert after["6_mytag/masks/手机 IMG 1.png"] == before["手机/Masks/IMG 1.png"]
    assert files(image_folder) == ({} if action == "move" else before)
    assert "手机: merged into `mytag`, which is in their captions" in said
    assert 'train_data_dir = "' + (image_folder.parent / "train").as_posix() in said


def test_the_training_reads_what_was_made(image_folder):
    run(image_folder)
    found = samples.find_samples(image_folder.parent / "train")
    assert len(found.train) == 6
    assert all(sample.caption.startswith("mytag") for sample in found.train)
    assert found.warnings == []


@pytest.mark.parametrize("action", ["copy", "link", "move"])
def test_a_second_run_has_nothing_to_do(image_folder, capsys, action):
    run(image_folder, action=action)
    before = files(image_folder.parent)
    assert "Nothing to do" in run(image_folder, capsys, action=action)
    assert files(image_folder.parent) == before


def test_showing_makes_the_plan_and_nothing_else(image_folder, capsys):
    before = files(image_folder)
    said = run(image_folder, capsys, action="show")
    assert files(image_folder) == before
    assert [path.name for path in (image_folder.parent / "train").iterdir()] == ["folders.html"]
    assert "nothing has been done yet" in said


def test_linked_images_take_no_room_and_captions_are_copies(image_folder):
    run(image_folder, action="link", repeats=1)
    made = image_folder.parent / "train" / "1_mytag"
    assert os.path.samefile(made / "a.png", image_folder / "a.png")
    assert os.path.samefile(made / "masks" / "a.png", image_folder / "masks" / "a.png")
    assert not os.path.samefile(made / "a.txt", image_folder / "a.txt")


def test_other_repeats_rename_the_folder_in_place_of_a_second_one(image_folder, capsys):
    """Two folders of one concept would be trained twice."""
    run(image_folder, repeats=10)
    said = run(image_folder, capsys, repeats=6)
    assert "10_mytag already exists with other repeats: renamed to 6_mytag" in said
    assert [path.name for path in (image_folder.parent / "train").iterdir() if path.is_dir()] == ["6_mytag"]
    assert "would be renamed to 3_mytag" in run(image_folder, capsys, repeats=3, action="show")
    assert (image_folder.parent / "train" / "6_mytag").is_dir()


def test_repeats_can_change_after_everything_was_moved(image_folder, capsys):
    run(image_folder, repeats=10, action="move")
    assert "renamed to 6_mytag" in run(image_folder, capsys, repeats=6, action="move")
    assert len(files(image_folder.parent / "train" / "6_mytag")) == len(ALL)


def test_two_folders_of_one_concept_are_refused(image_folder):
    run(image_folder, repeats=10)
    draw(image_folder.parent / "train" / "6_MyTag", ["z.png"])
    with pytest.raises(UserError, match="10_mytag, 6_MyTag are folders of the same word"):
        run(image_folder)


def test_what_is_there_with_other_content_is_never_written_over_unasked(image_folder, capsys):
    run(image_folder, repeats=6)
    made = image_folder.parent / "train" / "6_mytag"
    (made / "a.txt").write_text("edited there", encoding="utf-8")
    (image_folder / "b.txt").write_text("mytag, edited here", encoding="utf-8")
    before = files(image_folder.parent)
    with pytest.raises(UserError) as caught:
        run(image_folder, repeats=8)
    assert "1 file differs from images_dir: a.txt. Set overwrite = True" in str(caught.value)
    assert files(image_folder.parent) == before
    assert "2 files copied" in run(image_folder, capsys, repeats=6, overwrite=True)
    assert (made / "b.txt").read_text(encoding="utf-8") == "mytag, edited here"
    kept = {path.read_text(encoding="utf-8") for path in (image_folder.parent / "train" / ".backup").rglob("*.txt")}
    assert "edited there" in kept
    assert "Nothing to do" in run(image_folder, capsys, repeats=6, overwrite=True)


def test_a_caption_edited_in_the_cleaned_set_takes_the_place_of_its_copy(image_folder, capsys):
    run(image_folder, repeats=6)
    (image_folder / "b.txt").write_text("mytag, edited here", encoding="utf-8")
    assert "1 file copied" in run(image_folder, capsys, repeats=6)
    train = image_folder.parent / "train"
    assert (train / "6_mytag" / "b.txt").read_text(encoding="utf-8") == "mytag, edited here"
    assert len(list((train / ".backup").rglob("*.txt"))) == 1
    assert "Nothing to do" in run(image_folder, capsys, repeats=6)


def test_an_image_deleted_in_the_cleaned_set_is_trained_no_longer(image_folder, capsys):
    train = image_folder.parent / "train"
    run(image_folder, repeats=6)
    draw(train / "6_mytag", ["old.png"])  # somebody's own
    (image_folder / "a.png").unlink()
    found = samples.find_samples(train)  # also before it is sorted again
    assert "a.png" not in {sample.image_path.name for sample in found.train}
    assert len(found.train) == found.folders[0].image_count == 6
    assert any("1 image was deleted in" in line and "a.png" in line for line in found.warnings)
    said = run(image_folder, capsys, repeats=6)
    assert "1 image is no longer in images_dir under this word, so not trained: a.png" in said
    assert not list((train / "6_mytag").rglob("a.*"))
    assert {path.name for path in (train / ".removed" / "mytag").iterdir()} == {"a.png", "a.txt", "masks"}
    assert len(samples.find_samples(train).train) == 6


def test_a_cleaned_set_that_is_gone_as_a_whole_takes_nothing_out(image_folder):
    run(image_folder, repeats=6)
    image_folder.rename(image_folder.parent / "elsewhere")
    assert len(samples.find_samples(image_folder.parent / "train").train) == 6
    (image_folder.parent / "elsewhere").rename(image_folder)
    run(image_folder, repeats=6, action="move")
    assert len(samples.find_samples(image_folder.parent / "train").train) == 6


def test_another_trigger_word_takes_the_copies_along(image_folder):
    run(image_folder, repeats=6)
    run(image_folder, repeats=6, concept="ohwx", sub_folders="together")
    train = image_folder.parent / "train"
    assert [path.name for path in train.iterdir() if path.is_dir() and path.name[0] != "."] == ["6_ohwx"]
    assert len(list((train / "6_ohwx").glob("*.png"))) == 6


def test_images_there_that_come_from_elsewhere_are_named_and_counted(image_folder, capsys):
    run(image_folder, repeats=6)
    draw(image_folder.parent / "train" / "6_mytag", ["old.png"])
    said = run(image_folder, capsys, repeats=6)
    assert "1 image is not in images_dir, but will be trained too: old.png" in said
    assert "6_mytag: 7 images x 6 repeats" in said


# ---- concepts ----


def test_sub_folders_become_concepts_or_not(tmp_path, capsys):
    folder = tmp_path / "image_folder"
    draw(folder / "catty", ["1.png"], "catty, sitting")
    draw(folder / "8_doggo", ["1.png"], "doggo, sitting")
    draw(folder / "手机", ["1.png"], "mytag, sitting")
    draw(folder, ["1.png"], "mytag")
    run(folder, capsys)
    made = {name.split("/")[0].partition("_")[2] for name in files(tmp_path / "train")}
    assert made == {"catty", "doggo", "mytag"}
    assert (tmp_path / "train" / "8_doggo" / "1.png").exists()  # keeps its number
    run(folder, sub_folders="concepts", output_dir=str(tmp_path / "each"))
    assert {path.name.partition("_")[2] for path in (tmp_path / "each").iterdir() if path.is_dir()} == {
        "catty", "doggo", "mytag", "手机",
    }  # fmt: skip
    run(folder, sub_folders="together", output_dir=str(tmp_path / "one"))
    (mytag,) = [path for path in (tmp_path / "one").iterdir() if path.name.endswith("_mytag")]
    assert {path.name for path in mytag.glob("*.png")} == {"1.png", "catty 1.png", "手机 1.png"}


def test_a_sub_folder_within_a_concept_keeps_its_images_apart(tmp_path):
    folder = draw(tmp_path / "image_folder", ["catty/1.png", "catty/more/1.png", "catty/more/still/1.png"], "catty")
    run(folder, repeats=2)
    assert {name for name in files(tmp_path / "train") if name.endswith(".png")} == {
        "2_catty/1.png", "2_catty/catty more 1.png", "2_catty/catty more still 1.png",
    }  # fmt: skip


def test_the_face_recipe_becomes_a_training_set_and_its_regularization_of_one_word(tmp_path, capsys):
    folder = draw(tmp_path / "prepared", [f"train/f{n}.png" for n in range(4)])
    draw(folder, [f"reg/body{n}.png" for n in range(6)], None)
    said = run(folder, capsys, repeats=10, output_dir=str(tmp_path / "train"))
    assert len(list((tmp_path / "train" / "10_mytag").glob("f*.png"))) == 4
    assert len(list((tmp_path / "reg" / "5_mytag").glob("body*.png"))) == 6  # half as often, as guides have it
    assert not list((tmp_path / "reg").rglob("*.txt"))
    assert "5_mytag: 6 images x 5 repeats" in said
    draw(folder, [f"reg/more{n}.png" for n in range(14)], None)
    run(folder, repeats=10, output_dir=str(tmp_path / "train"))
    assert len(list((tmp_path / "reg" / "2_mytag").glob("*.png"))) == 20  # 2 x 20 are not more than 10 x 4
    for image in (folder / "reg").glob("*.png"):
        image.unlink()
    run(folder, repeats=10, output_dir=str(tmp_path / "faces alone" / "train"))
    assert [path.name for path in (tmp_path / "faces alone").iterdir()] == ["train"]


# ---- repeats ----


@pytest.mark.parametrize("count", [1, 7, 30, 100, 400])
@pytest.mark.parametrize("steps", [500, 1500, 3000])
def test_proposed_repeats_come_as_near_to_the_steps_as_whole_numbers_can(count, steps):
    repeats = folder_sorting.proposed({"a": count}, {}, steps=steps, epochs=10, batch_size=2)["a"]

    def miss(number):
        return abs(count * number * 10 / 2 - steps)

    assert repeats == 500 or miss(repeats) <= min(miss(repeats + 1), miss(max(1, repeats - 1)))


def test_concepts_weigh_alike_and_given_repeats_are_taken_off_first():
    counts = {"many": 50, "few": 10, "given": 50}
    repeats = folder_sorting.proposed(counts, {"given": 2}, steps=1500, epochs=10, batch_size=2)
    assert repeats == {"given": 2, "many": 2, "few": 10}


def test_an_image_that_strayed_into_a_folder_of_its_own_is_a_small_part_of_the_training():
    counts = {"girl": 20, "downloads": 1}
    repeats = folder_sorting.proposed(counts, {}, steps=1500, epochs=10, batch_size=2)
    assert repeats == {"girl": 12, "downloads": 60}  # 20 % of the training; 150 repeats would be half of it


def test_the_readmes_example():
    """30 images as 6_mycloths, 10 epochs: 1,800 steps at a batch of one."""
    assert folder_sorting.proposed({"mycloths": 30}, {}, steps=1800, epochs=10, batch_size=1) == {"mycloths": 6}
    assert folder_sorting.step_count(180, 10, 1) == 1800


def test_the_arithmetic_is_told(image_folder, capsys):
    said = run(image_folder, capsys, target_steps=300)
    assert "10_mytag: 6 images x 10 repeats x 10 epochs / batch of 2 = about 300 steps, 100% of the training" in said
    assert "reg repeats x reg images should be at most 60 " in said
    assert "max_train_epochs = 3 comes close to it" in run(image_folder, capsys, target_steps=10, action="show")


# ---- the word ----


@pytest.mark.parametrize(
    ("concept", "message"),
    [
        ("my,tag", "contains a comma"),
        ("我的，衣服", "contains a comma"),
        ("10_mytag", 'Set concept = "mytag", repeats = 10'),
        ("my/tag", "not allowed in a file name"),
        ("my?tag", "not allowed in a file name"),
        ("nul", "every system"),
        ("mytag.", "every system"),
        ("", "is empty"),
    ],
)
def test_a_word_that_cannot_be_a_folders_is_refused(image_folder, concept, message):
    with pytest.raises(ConfigError, match=message):
        run(image_folder, concept=concept)


def test_folders_within_each_other_are_refused(image_folder):
    with pytest.raises(ConfigError, match="is inside images_dir"):
        run(image_folder, output_dir=str(image_folder / "train"))
    with pytest.raises(ConfigError, match="is inside images_dir"):
        run(image_folder, output_dir=str(image_folder))


def test_a_comma_in_a_sub_folders_name_is_refused(tmp_path):
    with pytest.raises(UserError, match="\"a, b\": a folder's word can't contain a comma"):
        run(draw(tmp_path / "image_folder", ["a, b/1.png"]), sub_folders="concepts")


def test_words_are_checked_against_captions_and_vocabulary(tmp_path, capsys):
    folder = draw(tmp_path / "image_folder", ["girl/1.png"], "girl, hat")
    draw(folder, ["mytagger/1.png"], "mytagger")
    draw(folder, ["1.png"], "hat, mytag hat")
    draw(folder, ["2.png"], "shoes")
    said = run(folder, capsys, sub_folders="concepts")
    assert "`girl` already has a meaning, which mixes with what is learned: the base model already knows" in said
    assert (
        "`mytag` already has a meaning, which mixes with what is learned: it is part of other tags: mytag hat" in said
    )
    assert "`mytag` is missing in 1 of 2 captions: 2.png" in said
    assert "`mytag` is the beginning of mytagger" in said


def test_the_base_models_own_tokenizer_is_asked(image_folder):
    """The miniature's has few merges: the word is spelt out to it."""
    run(image_folder, pretrained_model_name_or_path=str(PROJECT / "library" / "miniature" / "model"), concept="zxqvj")
    page = (image_folder.parent / "train" / "folders.html").read_text(encoding="utf-8")
    assert " tokens to model" in page


# ---- whatever comes in between ----


def test_names_that_are_one_on_other_systems_are_refused(tmp_path):
    folder = draw(tmp_path / "image_folder", ["a.png", "A.png"])
    if len(list(folder.glob("*.png"))) < 2:
        pytest.skip("this disk makes no difference of capital letters")
    with pytest.raises(UserError, match="same name on Windows"):
        run(folder)


def test_a_full_disk_is_told_before_anything_is_copied(image_folder, monkeypatch):
    monkeypatch.setattr(sort_into_folders.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(UserError, match=r"GB needed, but only 0\.0 GB free"):
        run(image_folder)
    assert not (image_folder.parent / "train").exists()


def test_a_file_in_a_folders_place_is_told(image_folder):
    (image_folder.parent / "train").mkdir()
    (image_folder.parent / "train" / "6_mytag").write_bytes(b"")
    with pytest.raises(UserError, match="6_mytag is a file"):
        run(image_folder, repeats=6)


@pytest.mark.parametrize("at", range(1, 34, 2))
def test_a_move_that_is_stopped_anywhere_goes_on_to_the_same_end(image_folder, monkeypatch, at):
    """At its n-th step on the disk; both folders together hold everything at any moment."""
    before = set(files(image_folder).values())
    calls = []

    def stopping(real):
        def step(*arguments, **named):
            calls.append(arguments)
            if len(calls) == at:
                raise KeyboardInterrupt
            return real(*arguments, **named)

        return step

    monkeypatch.setattr(folder_sorting.os, "link", stopping(os.link))
    monkeypatch.setattr(folder_sorting.Path, "unlink", stopping(folder_sorting.Path.unlink))
    with suppress(Stopped, KeyboardInterrupt):
        run(image_folder, action="move", repeats=6)
    assert before <= set(files(image_folder.parent).values())
    monkeypatch.undo()
    run(image_folder, action="move", repeats=6)
    made = files(image_folder.parent / "train")
    assert set(made) == {f"6_mytag/{name}" for name in ALL}
    assert set(made.values()) == before
    assert not any(name.endswith(".png") and "masks" not in name.lower() for name in files(image_folder))


@pytest.mark.slow("starts a process and kills it")
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_copy_that_is_killed_goes_on(tmp_path, capsys):
    folder = tmp_path / "image_folder"
    folder.mkdir()
    for number in range(1500):
        (folder / f"{number}.png").write_bytes(os.urandom(20_000))
    code = (
        "from library.options.checks import check_tool; from library.options.tools import TOOLS\n"
        "from tools import sort_into_folders\n"
        f"values = dict(images_dir={str(folder)!r}, output_dir={str(tmp_path / 'train')!r}, repeats=1)\n"
        "sort_into_folders.run(check_tool(TOOLS['sort_into_folders.py'], values, {}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.DEVNULL)
    made, deadline = tmp_path / "train" / "1_mytag", time.monotonic() + 60
    while len(list(made.glob("*.png"))) < 100 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = list(made.glob("[0-9]*.png"))
    assert 100 <= len(there) < 1500
    assert all(path.read_bytes() == (folder / path.name).read_bytes() for path in there)
    said = run(folder, capsys, repeats=1)
    assert f"{1500 - len(there):,} files copied" in said
    assert {path.name for path in made.glob("*.png")} == {path.name for path in folder.iterdir()}


def test_the_page_shows_the_images_in_the_users_language(image_folder):
    set_language("zh")
    run(image_folder)
    page = (image_folder.parent / "train" / "folders.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 6
    assert page.count("data:image/webp") == 6
    assert "每轮样本" in page
    assert "images x" not in page


def test_nothing_is_taken_away_that_is_not_the_same_in_its_new_place(image_folder):
    made = draw(image_folder.parent / "made", ["b.png"], None)
    (made / "a.png").write_bytes(b"half of it")
    pairs = [(made, folder_sorting.File(image_folder / name, name, True)) for name in ("a.png", "b.png", "x.y.png")]
    assert folder_sorting.take_away(pairs, image_folder) == 1
    assert [(image_folder / file.name).exists() for _, file in pairs] == [True, False, True]
