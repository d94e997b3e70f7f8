"""What several tests need: messages in English, a tiny base model as a diffusers folder, a small training set."""

import json
import os
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: two workers share two cores
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job; our children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from PIL import Image, ImageDraw

from library.messages import say, set_language
from library.options.parameter_block import MARK
from tests import held_files

UNDER_THE_RULE = {"storage", "data", "tooling", "training"}  # folders of tests

LONG = [  # half a minute to two each, the longest first
    "test_options.py", "test_survival.py", "test_main_job.py", "test_unet_forward.py", "test_distributed.py",
    "test_train.py", "test_from_images_to_lora.py", "test_compilation.py", "test_validation.py",
]  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before -m "not slow" chooses
def pytest_collection_modifyitems(items):
    """The longest files first: a file is one worker's, and the last one should not be left alone with a long one."""
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))
    for item in items:
        if "small_set" in item.fixturenames:
            item.add_marker(pytest.mark.slow("trains a tiny model"))


@pytest.fixture(autouse=True)
def english():
    """Messages in English, whatever the machine's locale and whatever a test did before."""
    set_language("en")
    yield
    set_language("en")


@pytest.fixture(autouse=True)
def windows_keeps_held_files(request, monkeypatch):
    """What our code holds it neither removes nor replaces: `tests/held_files.py`."""
    if request.path.parent.name in UNDER_THE_RULE and sys.platform == "linux":
        held_files.install(monkeypatch)


class Reading:
    """Options, and which of them were read."""

    def __init__(self, settings):
        self.settings, self.read = settings, {}

    def __getattr__(self, name):
        value = self.read[name] = getattr(self.settings, name)
        return value


@pytest.fixture(scope="session", autouse=True)
def count_memory_once():
    """What a run needs in memory, a third of a small run's time, is counted once for all that need the same.

    These are the runs that are the same in every option that was read in counting, and in model, buckets and device.
    """
    from library.training import build, memory_plan

    plain, known = build.plan_memory, []

    def plan_memory(run, attend):
        sets = [(own.batch_size, {fit.bucket for fit in own.fits.values()}) for own in run.plan.sets]
        facts = run.model, run.device.torch_device, run.device.dtype, attend, sets, say("en", "zh")
        for plan, own_facts, options in known:
            if (
                run.start is None
                and own_facts == facts
                and all(getattr(run.settings, name) == value for name, value in options.items())
            ):
                return plan
        reading = Reading(run.settings)
        with mock.patch.object(memory_plan, "settings_of", lambda asked, instead: asked):
            plan = plain(replace(run, settings=reading), attend)
        if run.start is None:  # else it depends on a file
            known.append((plan, facts, reading.read))
        return plan

    with mock.patch.object(build, "plan_memory", plan_memory):
        yield


def write_diffusers_folder(path: Path, family) -> Path:
    """A family's model as a diffusers folder, as a person would have it."""
    from library.families.clip_text import clip_merges

    for name, module in family.modules().items():
        module.save_pretrained(path / (family.facts.parts[name].folder if name in family.facts.parts else name))
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = getattr(family, name, None)
        if tokenizer is not None:
            (path / name).mkdir()
            merges = clip_merges()[: len(tokenizer) - 514]
            (path / name / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()), encoding="utf-8")
            lines = ["#version: 0.2", *(" ".join(merge) for merge in merges), ""]
            (path / name / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
            named = {"pad_token": {"content": tokenizer.pad_token}}
            (path / name / "special_tokens_map.json").write_text(json.dumps(named))
    kind = "StableDiffusionXLPipeline" if family.facts.name == "sdxl" else "StableDiffusionPipeline"
    (path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    (path / "scheduler").mkdir()
    kinds = {"epsilon": "epsilon", "v": "v_prediction"}
    scheduler = {"prediction_type": kinds[family.noise.objective]}
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """tiny_model("sd1") -> the folder of a random base model of kilobytes; "sd2" is a v model, and there is "sdxl"."""
    from library import families

    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = write_diffusers_folder(tmp_path_factory.mktemp(name) / "tiny", families.tiny(name))
        return folders[name]

    return folder


def draw_set(folder: Path, captions: list[str], sizes: list[tuple[int, int]], seed: int = 0) -> Path:
    """Images of coloured ellipses with caption files."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    for index, (caption, size) in enumerate(zip(captions, sizes, strict=True)):
        image = Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3)))
        box = (size[0] * 0.2, size[1] * 0.2, size[0] * 0.8, size[1] * 0.8)
        ImageDraw.Draw(image).ellipse(box, fill=tuple(rng.randrange(256) for _ in range(3)))
        image.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(caption, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def small_set(tmp_path_factory):
    """A training set of 3 images in two buckets, seen twice, and 8 regularization images: (train, reg)."""
    root = tmp_path_factory.mktemp("set")
    captions = ["mytag, red hair, smile", "mytag, blue hair", "mytag, hat, standing, outside"]
    draw_set(root / "train" / "2_mytag", captions, [(64, 64), (64, 64), (48, 80)])
    draw_set(root / "reg" / "1_person", [f"person, hat {n}" for n in range(8)], [(64, 64)] * 8, seed=1)
    return root / "train", root / "reg"


def edit_block(script: Path, /, **settings) -> None:
    """Change values in a script's block as a user does; names that are not there are added."""
    head, mark, below = script.read_text(encoding="utf-8").partition(MARK)
    lines = head.splitlines()
    for name, value in settings.items():
        at = next((n for n, line in enumerate(lines) if line.startswith(f"{name} = ")), None)
        if at is None:
            lines.append(f"{name} = {value!r}")
        else:
            lines[at] = f"{name} = {value!r}"
    script.write_text("\n".join([*lines, mark]) + below, encoding="utf-8")


FEW = dict(  # a complete run of 12 steps within a second
    output_name="it", train_batch_size=2, max_train_epochs=2, network_dim=2, network_alpha=2.0, learning_rate=1e-2,
    text_encoder_lr=None, resolution=64, device="cpu", seed=7, save_every_n_epochs=None, sample_every_n_epochs=0,
    cache_latents_to_disk=False, tag_occurrence_txt_file=False, min_snr_gamma=None, prior_loss_weight=1.0,
)  # fmt: skip


@pytest.fixture
def run(tiny_model, small_set, tmp_path):
    """run("sdxl", output="a", option=value, ...) -> the folder of the results; a small complete run."""
    import train_network
    from library.options import checks

    def run(family: str = "sd1", output: str = "out", **options) -> Path:
        train, reg = small_set
        values = dict(
            pretrained_model_name_or_path=str(tiny_model(family)),
            train_data_dir=str(train),
            reg_data_dir=str(reg),
            output_dir=str(tmp_path / output),
        )
        checked, warnings = checks.check(values | FEW | options, {})
        assert train_network.run(checked, warnings) == 0
        return tmp_path / output

    return run


def events(folder: Path, kind: str = "step", name: str = "it") -> list[dict]:
    """The events of a run, as its run.jsonl has them."""
    lines = (folder / f"{name}.run.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


class Result(NamedTuple):
    """What a small run left behind."""

    folder: Path
    said: str

    @property
    def weights(self) -> dict:
        from safetensors.torch import load_file

        return load_file(self.folder / "it.safetensors")

    @property
    def metadata(self) -> dict[str, str]:
        from safetensors import safe_open

        with safe_open(self.folder / "it.safetensors", "pt") as file:
            return file.metadata()

    @property
    def steps(self) -> list[dict]:
        return events(self.folder)
