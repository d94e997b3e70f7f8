"""Models of other programs are found wherever those put them, and opened or refused with a cure."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from library.images import local_models
from library.messages import UserError


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """An empty home folder with the project beside it."""
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "U2NET_HOME", "MODELSCOPE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    project = tmp_path / "work" / "trainer"
    home.mkdir()
    project.mkdir(parents=True)
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(local_models, "PROJECT", project)
    monkeypatch.setattr(local_models, "_drives", list)
    return SimpleNamespace(home=home, project=project)


def made(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "place",
    [
        "work/trainer/models/wd-vit-tagger-v3",
        "home/.u2net",
        "home/.cache/huggingface/hub/models--SmilingWolf--wd-vit-tagger-v3/snapshots/0123abcd",
        "home/.cache/modelscope/hub/models/SmilingWolf/wd-vit-tagger-v3",
        "home/.cache/modelscope/hub/SmilingWolf/wd-vit-tagger-v3",
        "home/stable-diffusion-webui/models/TaggerOnnx/wd-vit-tagger-v3",
        "home/stable-diffusion-webui/models/interrogators/models--SmilingWolf--wd-vit-tagger-v3/snapshots/0123abcd",
        "work/ComfyUI/custom_nodes/ComfyUI-WD14-Tagger/models",
        "work/ComfyUI_windows_portable/ComfyUI/custom_nodes/ComfyUI-WD14-Tagger/models",
        "home/StabilityMatrix/Data/Packages/ComfyUI/custom_nodes/ComfyUI-WD14-Tagger/models",
        "home/sd-webui-aki-v4.8/extensions/tagger/models",
        "work/lora-scripts/wd14_tagger_model/SmilingWolf_wd-vit-tagger-v3",
    ],
)
def test_a_model_is_found_where_programs_put_it(machine, tmp_path, place):
    model = made(tmp_path / place / "model.onnx")
    assert local_models.find_models(["*.onnx"]) == [model]


@pytest.mark.parametrize(
    ("variable", "below"),
    [
        ("HF_HUB_CACHE", ""),
        ("HF_HOME", "hub/"),
        ("XDG_CACHE_HOME", "huggingface/hub/"),
        ("U2NET_HOME", ""),
        ("MODELSCOPE_CACHE", "hub/models/"),
    ],
)
def test_caches_lie_where_their_variables_say(machine, tmp_path, monkeypatch, variable, below):
    monkeypatch.setenv(variable, str(tmp_path / "cache"))
    model = made(tmp_path / "cache" / below / "models--a--b/snapshots/0/model.onnx")
    assert local_models.find_models(["*.onnx"]) == [model]


def test_programs_on_another_drive_are_found(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(local_models, "_drives", lambda: [tmp_path / "D", tmp_path / "no such drive"])
    model = made(tmp_path / "D" / "sd-webui-aki-v4" / "models" / "a.onnx")
    made(tmp_path / "D" / "photos" / "b.onnx")
    assert local_models.find_models(["*.onnx"]) == [model]


def test_the_users_own_places_come_first_and_relative_ones_are_the_projects(machine, tmp_path):
    usual = made(machine.project / "models" / "a.onnx")
    own = made(tmp_path / "mine" / "z.onnx")
    beside = made(machine.project / "more" / "y.onnx")
    assert local_models.find_models(["*.onnx"], [str(tmp_path / "mine"), "more", "nowhere"]) == [own, beside, usual]
    at_home = made(machine.home / "kept" / "x.onnx")
    assert local_models.find_models(["x.onnx"], ["~/kept"]) == [at_home]


def test_within_a_place_the_first_pattern_goes_first_and_case_does_not_matter(machine):
    second = made(machine.project / "models" / "a" / "U2Net.ONNX")
    first = made(machine.project / "models" / "b" / "isnet-General.onnx")
    made(machine.project / "models" / "c.pth")
    assert local_models.find_models(["ISNET*.onnx", "u2net*.onnx"]) == [first, second]


def test_a_pattern_with_folders_is_of_the_path_and_one_without_of_the_name(machine):
    tagger = made(machine.project / "models" / "wd-vit-tagger-v3" / "model.onnx")
    made(machine.project / "models" / "other" / "model.onnx")
    made(machine.project / "models" / "u2net-notes" / "model.txt.onnx")
    assert local_models.find_models(["wd-*tagger*/*.onnx"]) == [tagger]
    assert local_models.find_models(["u2net*.onnx"]) == []  # the folder is called so, the file is not


def linked(link: Path, target: Path) -> Path:
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(target)
    except OSError:
        pytest.skip("this system makes no links")
    return link


def test_links_of_a_hub_cache_lead_to_one_model(machine):
    """Two snapshots of one file, and a link that leads nowhere, as an interrupted download leaves it."""
    model = machine.home / ".cache/huggingface/hub/models--a--b"
    blob = made(model / "blobs" / "0123")
    first = linked(model / "snapshots" / "1" / "model.onnx", blob)
    linked(model / "snapshots" / "2" / "model.onnx", blob)
    linked(model / "snapshots" / "3" / "model.onnx", model / "blobs" / "gone")
    assert local_models.find_models(["model.onnx"]) == [first]


def test_linked_folders_are_entered_and_circles_end(machine, tmp_path):
    elsewhere = made(tmp_path / "disk" / "a.onnx").parent
    linked(machine.project / "models" / "more", elsewhere)
    linked(elsewhere / "circle", machine.project / "models")
    linked(elsewhere / "itself", elsewhere / "itself")
    model = machine.project / "models" / "more" / "a.onnx"
    assert list(local_models.files_below(machine.project / "models")) == [model]
    assert local_models.find_models(["*.onnx"]) == [model]


def test_the_search_is_bounded_and_looks_into_upper_folders_first(machine, monkeypatch):
    for number in range(30):
        made(machine.project / "models" / f"a{number:02}" / "deep" / "deeper" / "other.txt")
    shallow = made(machine.project / "models" / "0" / "model.onnx")
    made(machine.project / "models" / "a00" / "deep" / "deeper" / "model.onnx")
    monkeypatch.setattr(local_models, "MOST_FOLDERS", 40)
    assert local_models.find_models(["*.onnx"]) == [shallow]


def test_too_deep_hidden_environments_and_outputs_are_not_entered(machine):
    made(machine.project / "models" / Path(*"abcdefg") / "model.onnx")
    for name in ("venv", "Lora", "Outputs", ".git", "Python_Embeded"):
        made(machine.project / "models" / name / "model.onnx")
    assert local_models.find_models(["*.onnx"]) == []


def test_what_may_not_be_read_is_passed_over(machine, monkeypatch):
    made(machine.project / "models" / "locked" / "a.onnx")
    model = made(machine.project / "models" / "open" / "b.onnx")
    scan = os.scandir

    def refusing(folder):
        if Path(folder).name == "locked":
            raise PermissionError(folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    assert local_models.find_models(["*.onnx"]) == [model]


# ---- opening ----


def pretended(monkeypatch, available: list[str], started: list[str]):
    """An onnxruntime of another build: what it knows, and what of that starts."""
    asked = []

    class Session:
        def __init__(self, path, options, providers):
            asked.extend(providers)
            print("EP Error: noise of onnxruntime")

        def get_providers(self):
            return [*started, "CPUExecutionProvider"]

    module = SimpleNamespace(
        get_available_providers=lambda: [*available, "CPUExecutionProvider"],
        SessionOptions=SimpleNamespace,
        InferenceSession=Session,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return asked


CUDA, ROCM = "CUDAExecutionProvider", "ROCMExecutionProvider"


@pytest.mark.parametrize(
    ("device", "available", "started", "asked", "told"),
    [
        ("auto", [], [], [], "the CPU"),
        ("auto", [CUDA], [CUDA], [(CUDA, {})], "CUDA"),
        ("auto", [CUDA], [], [(CUDA, {})], "the CPU"),  # its libraries do not fit: onnxruntime falls back
        ("cuda:1", [CUDA], [CUDA], [(CUDA, {"device_id": "1"})], "CUDA"),
        ("cuda", [ROCM], [ROCM], [(ROCM, {})], "ROCm (AMD)"),
        ("cpu", [CUDA], [], [], "the CPU"),
    ],
)
def test_the_device_is_the_wanted_one(tmp_path, monkeypatch, capsys, device, available, started, asked, told):
    got = pretended(monkeypatch, available, started)
    model = local_models.open_onnx(made(tmp_path / "a.onnx", b"model"), device)
    assert (got, model.device) == ([*asked, "CPUExecutionProvider"], told)
    assert capsys.readouterr().out == ""


def test_a_gpu_that_was_asked_for_is_not_replaced_by_the_cpu(tmp_path, monkeypatch):
    model = made(tmp_path / "a.onnx", b"model")
    pretended(monkeypatch, [], [])
    with pytest.raises(UserError, match="supports only the CPU.* pip install onnxruntime-gpu"):
        local_models.open_onnx(model, "cuda")
    pretended(monkeypatch, [CUDA], [])
    with pytest.raises(UserError, match="cannot start the GPU here"):
        local_models.open_onnx(model, "cuda")
    for device in ("gpu", "cuda:x", "mps"):
        with pytest.raises(UserError, match=f'device = "{device}": models of onnxruntime run on "auto", "cpu"'):
            local_models.open_onnx(model, device)


def test_without_onnxruntime_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="needs onnxruntime: pip install onnxruntime"):
        local_models.open_onnx(made(tmp_path / "a.onnx", b"model"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 467\n",
            "a pointer or web page in its place",
        ),
        (b"\n<!DOCTYPE html><html>", "a pointer or web page in its place"),
        (b"", "contains no model but nothing"),
        (b"no model at all" * 300, "cannot be opened"),
    ],
)
def test_what_is_no_model_is_told(tmp_path, content, told):
    pytest.importorskip("onnxruntime")
    path = made(tmp_path / "model.onnx", content)
    with pytest.raises(UserError, match=told) as caught:
        local_models.open_onnx(path, "cpu")
    assert str(path) in str(caught.value)


def test_a_whole_model_runs(tmp_path):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "ab"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["a"], ["b"])], "negative", value[:1], value[1:])
    path = tmp_path / "模型.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8), path)
    model = local_models.open_onnx(path)
    import numpy as np

    assert model.session.run(None, {"a": np.float32([1, -2])})[0].tolist() == [-1, 2]
