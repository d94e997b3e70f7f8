"""What lies beside an image and looks like one: masks, control images, our own previews and grids are not taken."""

from pathlib import Path

import pytest
from PIL import Image

from library.data import folder_sorting, image_folder, image_names
from library.data.folders import images_in
from library.data.samples import find_samples
from library.messages import UserError
from library.tooling import raw_images

COMPANIONS = [
    "photo_mask.png", "photo-mask.png", "photo.mask.png", "Photo_Mask.PNG", "photo mask.png", "photo.jpg_mask.png",
    "photo_mask_0.png", "photo-mask2.png", "photo_depth.png", "photo_depth_map.png", "photo-condlabel.png",
    "photo_canny.webp", "photo_control.png", "photo_control_depth.png", "photo_openpose.png", "photo_lineart.jpg",
    "photo_normal.png", "photo_seg.png", "photo_softedge.png", "photo_蒙版.png",
]  # fmt: skip
IMAGES = [
    "photo2.png", "photo_smile.png", "mask.png", "girl_mask.png", "photo_masked ball.png", "_mask.png", "depth.png",
    "photomask.png", "photo - Kopie.png",
]  # fmt: skip
OURS = [
    "mytag.comparison.png", "mytag.preview.png", "grid-0001-42.png", "mytag_e000004_00_20261127101112_7.png",
    "my_tag_000500_11_20261127101112_7.png", "mytag_end_00_x0.5_20261127101112_7.png",
]  # fmt: skip


def fill(folder: Path, names) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8), "red").save(folder / name)
    return folder


@pytest.mark.parametrize("name", COMPANIONS)
def test_masks_and_control_images_of_an_image_are_named_and_left_out(name):
    found = image_names.sort_out(Path("1_a"), ["photo.jpg", name])
    assert (found.images, found.left_out) == (["photo.jpg"], [name])
    (line,) = found.lines("1_a")
    assert line.startswith(f"1_a: 1 image is a mask or control image of another, left out: {name}.")
    assert image_names.sort_out(Path("1_a"), [name]).images == ([] if name == "photo-condlabel.png" else [name])


@pytest.mark.parametrize("name", IMAGES)
def test_other_names_are_images_of_their_own(name):
    assert image_names.sort_out(Path("1_a"), ["photo.jpg", name]).images == ["photo.jpg", name]


def test_onetrainers_masks_are_masks_and_never_images():
    found = image_names.sort_out(Path("1_a"), ["photo.jpg", "photo-masklabel.png", "gone-masklabel.png"])
    assert (found.images, found.masks) == (["photo.jpg"], {"photo": "photo-masklabel.png"})
    (line,) = found.lines("1_a")
    assert "1 mask or control image has no matching image, left out: gone-masklabel.png" in line


def test_masks_of_cloneofsimos_script_belong_to_its_images():
    found = image_names.sort_out(Path("1_a"), ["0.src.jpg", "0.mask.png"])
    assert (found.images, found.left_out) == (["0.src.jpg"], ["0.mask.png"])


@pytest.mark.parametrize("name", OURS)
def test_what_we_drew_ourselves_is_never_taken(name):
    found = image_names.sort_out(Path("output"), ["photo.jpg", name])
    assert (found.images, found.ours) == (["photo.jpg"], [name])


def test_images_tried_are_known_by_the_grid_that_shows_them(tmp_path):
    fill(tmp_path / "tried", ["grid-0000-7.png", "pictures/00000-7.png"])
    fill(tmp_path / "web", ["pictures/00000-7.png"])
    assert images_in(tmp_path / "tried/pictures") == []
    assert images_in(tmp_path / "web/pictures") == ["00000-7.png"]


BESIDE = ["photo0.png", "photo0-masklabel.png", "photo0_depth.png", "a.comparison.png", "depth/photo0.png"]


def test_training_and_all_tools_take_the_same_images(tmp_path):
    folder = fill(tmp_path / "10_sks", BESIDE)
    found = find_samples(tmp_path)
    assert [one.image_path.name for one in found.train] == ["photo0.png"]
    assert found.train[0].mask.path == folder / "photo0-masklabel.png"
    told = "\n".join(found.warnings)
    assert "left out: photo0_depth.png" in told
    assert "left out: a.comparison.png" in told
    assert f"{folder / 'depth'}: masks or control images, not used" in told
    tools = image_folder.find_images(folder)
    assert [tools.name(image) for image in tools.images] == ["photo0.png"]
    assert any("photo0_depth.png" in note for note in tools.notes)
    names, survey = raw_images.find_raw_images(folder)
    assert names == ["photo0.png"]
    assert any("photo0-masklabel.png" in note for note in survey.notes)
    assert folder_sorting.numbered(tmp_path)[0].images == ["photo0.png"]


def test_a_mask_goes_with_its_image_into_the_numbered_folder(tmp_path):
    folder = fill(tmp_path / "images", ["phone/photo0.png", "photo1.png", "phone/photo0-masklabel.png"])
    (tmp_path / "images/phone/photo0.txt").write_text("sks")
    (concept,) = folder_sorting.concepts(image_folder.find_images(folder), "sks", "together")
    for file in folder_sorting.files(concept):
        folder_sorting.put(file, tmp_path / "train/10_sks", is_link=False)
    masks = {one.image_path.name: one.mask and one.mask.path.name for one in find_samples(tmp_path / "train").train}
    assert masks == {"phone photo0.png": "phone photo0-masklabel.png", "photo1.png": None}


def test_one_level_too_high_over_our_own_output_names_the_set(tmp_path):
    fill(tmp_path, ["a.comparison.png", "a.preview.png", "sample/a_e000001_00_20261127101112_7.png"])
    fill(tmp_path / "tried", ["grid-0000-7.png", "pictures/00000-7.png"])
    fill(tmp_path, ["prepared/photo.png", "train/10_sks/photo.png", "reg/10_girl/photo.png"])
    for option, name in (("train", "train"), ("reg", "reg")):
        folders = (tmp_path, None) if option == "train" else (tmp_path / "train", tmp_path)
        with pytest.raises(UserError) as error:
            find_samples(*folders)
        (problem,) = error.value.problems
        assert problem.endswith(f"is one level too high. Choose {tmp_path / name}")


def test_a_metadata_file_that_lists_masks_trains_none(tmp_path):
    from library.data import image_metadata
    from library.data.folders import Folder

    fill(tmp_path, ["photo.png", "photo-masklabel.png", "photo_depth.png"])
    names = ", ".join(f'"{path.name}": {{"caption": "sks"}}' for path in tmp_path.iterdir())
    (tmp_path / "meta.json").write_text(f"{{{names}}}")
    warnings: list[str] = []
    found = image_metadata.read_captions(
        Folder(tmp_path, 1, "", False, metadata_file=tmp_path / "meta.json"), False, warnings
    )
    assert [path.name for path in found] == ["photo.png"]
    assert "left out: photo_depth.png" in warnings[0]
