"""tools/edit_tags.py: shown first, then applied, once; undone; captions of every kind come through whole."""

import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from library.messages import Stopped, UserError, set_language
from library.options.checks import check_tool
from library.options.declaration import PROJECT
from library.options.tools import TOOLS
from library.storage import undo
from tests.conftest import edit_block
from tools import edit_tags

CAPTIONS = {
    "a.png": b"1girl, school uniform, short_sleeves, standing",
    "b.png": b"1girl, School Uniform, short sleeves, hat\nsecond line, school uniform\n",
    "照片 3.png": "1girl, 校服, school uniform".encode("gb18030"),
    "sub/ミク.png": "红发，school uniform，1girl".encode(),
    "none.png": None,
    "prose.png": b"A girl in a school uniform, standing in a garden, looking up at the sky.",
    "marked.png": "1girl, school uniform, smile".encode("utf-8-sig"),
}


@pytest.fixture
def folder(tmp_path):
    for name, caption in CAPTIONS.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 48), "teal").save(path)
        if caption is not None:
            path.with_suffix(".txt").write_bytes(caption)
    return tmp_path / "set"


def run(folder, capsys=None, **values):
    values = {"images_dir": str(folder), "output_dir": str(folder.parent / "page")} | values
    assert edit_tags.run(check_tool(TOOLS["edit_tags.py"], values, {})) == 0
    return capsys.readouterr().out if capsys else ""


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and undo.FOLDER not in path.parts
    }


RECIPE = dict(delete_tags=["school uniform", "short sleeves", "校服"])


def test_showing_changes_nothing(folder, capsys):
    before = files(folder)
    said = run(folder, capsys, **RECIPE)
    assert files(folder) == before
    assert not (folder / undo.FOLDER).exists()
    assert "7 captions would change, 1 of them new" in said
    assert "school uniform (4)" in said
    assert 'set action = "apply"' in said


def test_the_clothing_recipe_over_the_whole_set(folder, capsys):
    said = run(folder, capsys, action="apply", **RECIPE)
    assert "applied to 7 files" in said
    after = {name: data.decode("utf-8") for name, data in files(folder).items() if name.endswith(".txt")}
    assert after == {
        "a.txt": "mytag, 1girl, standing",
        "b.txt": "mytag, 1girl, hat\nsecond line, school uniform\n",
        "照片 3.txt": "mytag, 1girl",
        "sub/ミク.txt": "mytag, 红发, 1girl",
        "none.txt": "mytag",
        "prose.txt": "mytag, A girl in a school uniform, standing in a garden, looking up at the sky.",
        "marked.txt": "mytag, 1girl, smile",
    }
    assert "1 caption is read as GB18030 (GBK) and become UTF-8, e.g. 照片 3.png" in said
    assert "1 caption has Chinese commas" in said
    assert "1 of 7 images has no tags besides the trigger word: none.png" in said


def test_applying_twice_changes_nothing_the_second_time(folder, capsys):
    rules = RECIPE | dict(imply_tags=["hat -> headwear"], add_tags=["photo"], order="frequent first", action="apply")
    run(folder, capsys, **rules)
    before = files(folder)
    said = run(folder, capsys, **rules)
    assert files(folder) == before
    assert "nothing to change" in said
    assert len(list((folder / undo.FOLDER).iterdir())) == 1


def test_undo_restores_every_byte_also_encodings_and_missing_captions(folder, capsys):
    before = files(folder)
    run(folder, action="apply", **RECIPE)
    run(folder, action="apply", delete_tags="standing")
    run(folder, action="undo")
    said = run(folder, capsys, action="undo")
    assert "7 files restored" in said
    assert files(folder) == before
    assert "nothing to undo" in run(folder, capsys, action="undo")


def test_undo_leaves_and_names_what_was_changed_since(folder, capsys):
    run(folder, action="apply", **RECIPE)
    (folder / "a.txt").write_text("by hand", encoding="utf-8")
    said = run(folder, capsys, action="undo")
    assert "1 file was changed since and left as they are: a.txt" in said
    assert "6 files restored" in said
    assert (folder / "a.txt").read_text(encoding="utf-8") == "by hand"


def test_a_tag_that_stands_nowhere_is_told_with_the_nearest(folder, capsys):
    said = run(folder, capsys, delete_tags=["schol uniform", "xyz*"], replace_tags=["hut -> cap"])
    assert "delete_tags: `schol uniform` is in no caption; the nearest is `school uniform`" in said
    assert "delete_tags: `xyz*` is in no caption\n" in said
    assert "replace_tags: `hut` is in no caption; the nearest is `hat`" in said


def test_all_that_is_wrong_with_the_rules_is_told_and_nothing_is_done(folder):
    before = files(folder)
    with pytest.raises(UserError) as caught:
        run(
            folder, action="apply", delete_tags=["a, b"], replace_tags=["x", "y ->"], add_tags=["*"], trigger_word="a,b"
        )
    assert len(caught.value.problems) == 5
    with pytest.raises(UserError, match="would remove what trigger_word"):
        run(folder, action="apply", delete_tags=["my*"])
    assert files(folder) == before


def test_a_numbered_folder_has_its_own_word(folder, capsys):
    (folder / "sub").rename(folder / "10_mikuwear")
    run(folder, capsys, action="apply", trigger_word=None)
    assert (folder / "10_mikuwear" / "ミク.txt").read_text(encoding="utf-8").startswith("mikuwear, 红发")
    assert not (folder / "none.txt").exists()  # nothing to write
    with pytest.raises(UserError, match='would remove what trigger_word "mikuwear"'):
        run(folder, trigger_word=None, delete_tags=["miku*"])
    assert "is also added to the captions of 10_mikuwear" in run(folder, capsys)


def test_regularization_images_beside_the_training_set_get_no_trigger_word(folder, capsys):
    (folder / "sub").rename(folder / "reg")
    before = (folder / "reg" / "ミク.txt").read_bytes()
    said = run(folder, capsys, action="apply")
    assert (folder / "reg" / "ミク.txt").read_bytes() == before
    assert "1 regularization image is left unchanged" in said
    run(folder / "reg", action="apply", trigger_word=None, delete_tags="1girl")
    assert (folder / "reg" / "ミク.txt").read_text(encoding="utf-8") == "红发, school uniform"


def test_two_images_with_one_caption_file(folder, capsys):
    Image.new("RGB", (32, 32)).save(folder / "a.jpg")
    run(folder, capsys, action="apply", **RECIPE)
    assert (folder / "a.txt").read_text(encoding="utf-8") == "mytag, 1girl, standing"


def test_the_page_shows_what_goes_and_comes_and_what_each_tag_will_do(folder):
    run(folder, **RECIPE)
    page = (folder.parent / "page" / "summary.html").read_text(encoding="utf-8")
    assert "<del>school uniform</del>" in page
    assert "<ins>mytag</ins>, 1girl, " in page
    assert "照片 3.png" in page
    assert page.count("<figure>") == 7
    assert "<td>1girl</td>" in page


def test_the_page_speaks_chinese(folder):
    set_language("zh")
    run(folder, action="apply", **RECIPE)
    page = (folder.parent / "page" / "summary.html").read_text(encoding="utf-8")
    assert "已改动的标注文件" in page
    assert "captions" not in page


@pytest.mark.parametrize("extension", [".caption", "caption"])
def test_other_endings(folder, extension):
    (folder / "a.txt").rename(folder / "a.caption")
    run(folder, action="apply", caption_extension=extension)
    assert (folder / "a.caption").read_text(encoding="utf-8").startswith("mytag, 1girl")
    assert (folder / "b.txt").read_bytes() == CAPTIONS["b.png"]


def test_a_run_that_was_stopped_can_be_continued_and_undone(folder, capsys, monkeypatch):
    before = files(folder)
    real, calls = undo.Backup.write, []

    def write(self, path, data):
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(self, path, data)

    monkeypatch.setattr(undo.Backup, "write", write)
    with pytest.raises(Stopped):
        run(folder, capsys, action="apply", **RECIPE)
    assert "stopped: 3 of 7 files written" in capsys.readouterr().out
    monkeypatch.undo()
    assert "applied to 4 files" in run(folder, capsys, action="apply", **RECIPE)
    run(folder, action="undo")
    run(folder, action="undo")
    assert files(folder) == before


@pytest.mark.slow("starts the script")
def test_the_script_itself_shows_and_a_missing_folder_is_told(folder, tmp_path):
    """As a user starts it; the block's relative paths are the project's."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "library").symlink_to(PROJECT / "library")
    script = tmp_path / "tools" / "edit_tags.py"
    script.write_bytes((PROJECT / "tools" / "edit_tags.py").read_bytes())

    def start():
        environment = os.environ | {"LANGUAGE": "en", "PYTHONIOENCODING": "utf-8"}
        return subprocess.run(
            [sys.executable, script], capture_output=True, encoding="utf-8", env=environment, timeout=60
        )

    edit_block(script, images_dir=str(folder), output_dir=str(tmp_path / "page"), delete_tags=["school uniform"])
    done = start()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"summary: {tmp_path / 'page' / 'summary.html'}\n")
    edit_block(script, images_dir=str(folder / "gone"))
    done = start()
    assert done.returncode == 2
    assert 'there is no "gone"' in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_killed_run_can_be_undone(tmp_path):
    """Killed for real, in the midst of a thousand captions."""
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(1000):
        (folder / f"{number}.png").write_bytes(b"")
        (folder / f"{number}.txt").write_text(f"1girl, hat {number}", encoding="utf-8")
    before = files(folder)
    code = (
        "from library.options.checks import check_tool\n"
        "from library.options.tools import TOOLS\n"
        "from tools import edit_tags\n"
        f"values = dict(images_dir={str(folder)!r}, output_dir={str(tmp_path / 'page')!r}, action='apply')\n"
        "edit_tags.run(check_tool(TOOLS['edit_tags.py'], values, {}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list((folder / undo.FOLDER).glob("*/*.txt"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    changed = files(folder)
    written = sum(before.get(name) != data for name, data in changed.items() if name.endswith(".txt"))
    assert 0 < written < 1000
    assert all(
        data in (before.get(name), b"mytag, " + before.get(name, b""))
        for name, data in changed.items()
        if name.endswith(".txt")
    )
    undone = undo.undo(folder)
    assert len(undone.restored) == written
    assert {name: data for name, data in files(folder).items() if not name.endswith(".tmp")} == before


def test_a_caption_in_gbk_becomes_utf8_also_where_no_tag_changes(folder, capsys):
    (folder / "照片 3.txt").write_bytes("mytag, 帽子".encode("gb18030"))
    run(folder, action="apply")
    assert (folder / "照片 3.txt").read_text(encoding="utf-8") == "mytag, 帽子"
    assert "nothing to change" in run(folder, capsys, action="apply")


def test_windows_1252_becomes_utf8_as_it_was_written(folder, capsys):
    (folder / "a.txt").write_bytes("a woman\u2019s hat, Pok\u00e9mon".encode("cp1252"))
    (folder / "照片 3.txt").write_bytes("a man\u2019s hat".encode("cp1252"))
    run(folder, capsys, action="apply")
    assert (folder / "a.txt").read_text(encoding="utf-8") == "mytag, a woman\u2019s hat, Pok\u00e9mon"
    assert (folder / "照片 3.txt").read_text(encoding="utf-8") == "mytag, a man\u2019s hat"


def test_a_guess_is_never_written_back(folder, capsys):
    (folder / "照片 3.txt").write_bytes("교복".encode("cp949"))
    before = files(folder)
    said = run(folder, capsys)
    assert "which encoding they are in is not certain: 照片 3.txt" in said
    with pytest.raises(UserError, match=r"not certain: 照片 3\.txt.*save them as UTF-8"):
        run(folder, capsys, action="apply")
    assert files(folder) == before
