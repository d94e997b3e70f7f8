"""The whole run on tiny models: from folders of images to a file that others can load, and to the same bits again."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from library import adapters, families, files
from library.families import sd
from library.lora_files.factors import canonical, read_factors
from library.messages import UserError
from library.options import checks, command_line
from library.storage import lora_file
from library.storage.problems import explain_write_errors
from tests.conftest import FEW, events
from tests.held_files import sharing_violation

ROOT = Path(__file__).parents[2]


def losses(folder: Path, name: str = "it") -> list[float]:
    return [event["loss"] for event in events(folder, name=name)]


def same_weights(first: Path, second: Path) -> bool:
    ours, theirs = load_file(first), load_file(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


GOLDEN = {
    "sd1": [1.014, 1.02614, 0.97636, 0.93812, 1.17599, 1.1305, 1.09456, 1.09885, 1.09013, 1.26341, 1.21799, 1.05308],
    "sd2": [0.35928, 0.51044, 0.46463, 0.11764, 0.18465, 0.55046, 0.23509, 0.5025, 0.16843, 0.38118, 0.6265, 0.31986],
    "sdxl": [1.0928, 1.13855, 1.03908, 1.03763, 1.20035, 1.13498, 1.17507, 1.10893, 1.16798, 1.22239, 1.21792, 1.07024],
}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_golden_losses(run, family):
    """Every step's loss of a small run; whoever changes the arithmetic on purpose changes these too."""
    assert losses(run(family)) == pytest.approx(GOLDEN[family], rel=1e-3, abs=1e-4)  # shows both where they differ


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_file_holds_every_target_under_its_name_and_says_what_it_is(run, family):
    out = run(family)
    with safe_open(out / "it.safetensors", "pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    targets = [target for target in families.tiny(family).targets() if not target.needs_conv_dim]
    endings = ("lora_down.weight", "lora_up.weight", "alpha")
    assert names == {f"{target.saved_as}.{ending}" for target in targets for ending in endings}
    assert metadata["ss_network_dim"] == "2"
    assert metadata["ss_v2"] == str(family == "sd2")
    assert metadata["ss_output_name"] == "it"
    assert "auto" not in metadata.values()
    assert json.loads(metadata["ss_tag_frequency"])["2_mytag"]["mytag"] == 3
    assert metadata["ss_steps"] == metadata["ss_max_train_steps"] == str(len(events(out)))
    assert len(metadata["sshs_model_hash"]) == 64


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_diffusers_loads_the_file_whole_and_predicts_the_same(run, family, tiny_model):
    """The yardstick of every web UI: the change of the U-Net's output is that of training."""
    import diffusers

    pipeline_class = diffusers.StableDiffusionXLPipeline if family == "sdxl" else diffusers.StableDiffusionPipeline
    out = run(family, save_precision="float")
    ours = families.open_model(tiny_model(family), dtype=torch.float32)
    tensors = lora_file.load_adapter(out / "it.safetensors")
    captions, sizes = ["mytag, red hair"], torch.tensor([[64.0, 64, 0, 0, 64, 64]])
    noisy, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500])

    def predicted(family):
        with torch.no_grad():
            return family.predict(noisy, t, family.encode_captions(captions) | family.size_conditioning(sizes))

    before = predicted(ours)
    attached = adapters.attach([target for target in ours.targets() if not target.needs_conv_dim], rank=2, alpha=2)
    attached.load_state_dict(tensors)
    ours_after = predicted(ours)
    attached.detach_from_model()

    theirs = families.open_model(tiny_model(family), dtype=torch.float32)
    parts = theirs.modules()
    extra = {"text_encoder_2": parts["text_encoder_2"], "tokenizer_2": theirs.tokenizer_2} if family == "sdxl" else {}
    if family == "sd1":
        extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = pipeline_class(
        vae=parts["vae"], text_encoder=parts["text_encoder"], tokenizer=theirs.tokenizer, unet=parts["denoiser"],
        scheduler=diffusers.DDIMScheduler(), **extra,
    )  # fmt: skip
    pipeline.load_lora_weights(out, weight_name="it.safetensors")
    assert not torch.allclose(before, ours_after, atol=1e-3)
    torch.testing.assert_close(predicted(theirs), ours_after, rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(run):
    first, second, other = run(output="a"), run(output="b"), run(output="c", seed=8)
    assert same_weights(first / "it.safetensors", second / "it.safetensors")
    assert losses(first) == losses(second)
    assert not same_weights(first / "it.safetensors", other / "it.safetensors")


def test_a_continued_run_gives_the_bits_of_an_unbroken_one(run):
    """Stopped within an epoch, with dropout and shuffled tags: position, moments and streams must all be right."""
    options = dict(network_dropout=0.3, lr_scheduler="cosine", shuffle_caption=True, save_precision="float")
    whole = run(output="whole", **options)
    cut = run(output="cut", save_state=True, save_every_n_steps=3, **options)
    assert (cut / "it-step00000003-state").is_dir()
    run(output="cut", resume=str(cut / "it-step00000003-state"), **options)
    assert same_weights(whole / "it.safetensors", cut / "it-2.safetensors")
    assert losses(cut, "it-2") == losses(whole)


@pytest.mark.parametrize("step_count", [5, 6, 7])
def test_a_run_ended_by_its_steps_can_be_extended(run, step_count):
    """6 steps are an epoch: ended within one, at its end, and after its beginning."""
    options = dict(lr_scheduler="constant", shuffle_caption=True, save_precision="float", max_train_epochs=None)
    whole = run(output="whole", max_train_steps=9, **options)
    cut = run(output="cut", max_train_steps=step_count, save_state_on_train_end=True, **options)
    run(output="cut", resume=str(cut / "it-state"), max_train_steps=9, **options)
    assert same_weights(whole / "it.safetensors", cut / "it-2.safetensors")
    assert losses(cut, "it-2") == losses(whole)


def test_what_changed_since_the_state_was_saved_is_said(run, capsys):
    out = run(save_state=True)
    capsys.readouterr()
    run(resume=str(out / "it-state"), max_train_epochs=3, learning_rate=5e-3)
    said = capsys.readouterr().out
    assert "learning_rate was 0.01 when the state was saved, and is 0.005 now" in said
    assert "max_train_epochs was 2" in said


def test_previews_change_no_bit_of_the_training(run):
    without = run(output="without")
    drawn = dict(sample_prompts="mytag --s 2 --w 64 --h 64", sample_at_first=True)
    prompts = run(output="with", sample_every_n_epochs=1, sample_every_n_steps=2, **drawn)
    assert same_weights(without / "it.safetensors", prompts / "it.safetensors")
    names = sorted(path.name for path in (prompts / "sample").iterdir())
    assert names[0].startswith("it_000002_00_")
    assert any(name.startswith("it_e000000_00_") and name.endswith("_7.png") for name in names)
    assert (prompts / "it.comparison.png").is_file()
    assert (prompts / "it.preview.png").is_file()


def test_the_cache_on_disk_gives_the_bits_of_the_cache_in_memory(run, tmp_path):
    memory = run(output="memory")
    for output in ("made", "reused"):
        disk = run(output=output, cache_latents_to_disk=True, cache_dir=str(tmp_path / "cache"))
        assert same_weights(memory / "it.safetensors", disk / "it.safetensors")


def test_fresh_latents_and_captions_train_like_cached_ones(run):
    """Up to the rounding of the cache to fp16."""
    cached = run(output="cached", text_encoder_lr=0.0)
    fresh = run(output="fresh", text_encoder_lr=0.0, cache_latents=False, cache_text_encoder_outputs=False)
    torch.testing.assert_close(losses(cached), losses(fresh), rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_follows_fp32(run, precision):
    full, half = losses(run(output="full")), losses(run(output="half", mixed_precision=precision))
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.02)


def test_gradient_checkpointing_changes_no_loss(run):
    plain, checkpointed = run(output="plain"), run(output="checkpointed", gradient_checkpointing=True)
    torch.testing.assert_close(losses(plain), losses(checkpointed), rtol=1e-5, atol=1e-6)


def test_accumulated_batches_count_as_one_step(run):
    """6 + 6 samples in batches of one, three to a step: the same number of samples, a third of the steps."""
    assert len(events(run(train_batch_size=1, gradient_accumulation_steps=3))) == 2 * 4


def test_regularization_images_weigh_as_asked(run, small_set):
    """With weight 0 they give no gradient: a different result than with 1, and nothing but their share of the mean."""
    assert not same_weights(
        run(output="full") / "it.safetensors", run(output="none", prior_loss_weight=0.0) / "it.safetensors"
    )


def test_nothing_is_overwritten(run, capsys):
    run()
    before = (run() / "it.safetensors").read_bytes()
    assert "this run is named it-2" in capsys.readouterr().out
    out = run()
    assert (out / "it.safetensors").read_bytes() == before
    assert (out / "it-3.safetensors").is_file()


def test_only_the_last_files_are_kept_if_asked(run):
    out = run(max_train_epochs=5, save_every_n_epochs=1, save_last_n_epochs=2)
    kept = sorted(path.name for path in out.glob("*.safetensors"))
    assert kept == ["it-000003.safetensors", "it-000004.safetensors", "it.safetensors"]


def test_a_file_that_a_web_ui_has_loaded_is_removed_later_and_ends_no_run(run, monkeypatch, capsys):
    real, tries = files.remove, []

    def remove(path):
        if path.name == "it-000001.safetensors":
            tries.append(path)
            if len(tries) < 3:
                raise sharing_violation(path)
        real(path)

    monkeypatch.setattr(files, "remove", remove)
    out = run(max_train_epochs=5, save_every_n_epochs=1, save_last_n_epochs=1)
    assert len(tries) == 3
    assert sorted(path.name for path in out.glob("*.safetensors")) == ["it-000004.safetensors", "it.safetensors"]
    assert (
        capsys.readouterr().out.count("it-000001.safetensors could not be removed: it is open in another program") == 1
    )


def test_a_training_is_finished_even_if_its_state_cannot_be_written(run, monkeypatch, capsys):
    from library.storage import training_state

    def held(folder, state):
        with explain_write_errors(folder):
            raise sharing_violation(folder / "state-1.pt")

    monkeypatch.setattr(training_state, "save_state", held)
    out = run(save_state_on_train_end=True)
    assert (out / "it.safetensors").is_file()
    assert "it-state: cannot be written: it is open in another program" in capsys.readouterr().out


def test_a_loss_that_is_no_number_ends_the_run_with_a_cure(run, monkeypatch):
    from library.diffusion import losses

    monkeypatch.setattr(losses, "per_sample", lambda p, t, *more: (p - t).flatten(1).mean(1) * float("nan"))
    with pytest.raises(UserError, match="lower learning_rate"):
        run()


def test_a_run_continues_from_a_lora_file(run):
    first = run(output="first", save_precision="float")
    second = run(output="second", network_weights=str(first / "it.safetensors"), learning_rate=1e-9)
    ours, theirs = load_file(first / "it.safetensors"), load_file(second / "it.safetensors")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name].float(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow("trains")
def test_a_lora_file_that_does_not_fit_is_told_before_the_model_is_loaded(run, monkeypatch):
    weights = str(run(output="first", network_dim=2) / "it.safetensors")
    monkeypatch.setattr("library.training.build.open_family", lambda *_: pytest.fail("the model is loaded"))
    with pytest.raises(UserError, match="does not fit this run"):
        run(output="second", network_dim=4, network_weights=weights)


def test_a_family_may_write_another_layout_and_a_run_continues_from_it(run, monkeypatch):
    """diffusers' names without alpha; the numbers are those of the usual file, with the scale in them."""
    first = run(output="first", save_precision="float", text_encoder_lr=0)
    facts = dataclasses.replace(sd.FACTS["sd1"], saved_layout="diffusers")
    monkeypatch.setattr(sd, "FACTS", {**sd.FACTS, "sd1": facts})
    other = run(output="other", save_precision="float", text_encoder_lr=0)
    ours, theirs = (read_factors("it", load_file(folder / "it.safetensors")) for folder in (first, other))
    assert all(name.startswith("unet.") for name in theirs)
    known, strange = canonical(theirs, families.tiny("sd1").layers())
    assert (known.keys(), strange) == (ours.keys(), [])
    for name, factors in known.items():
        torch.testing.assert_close(factors.update("cpu"), ours[name].update("cpu"))
    weights = str(other / "it.safetensors")
    settings = dict(network_weights=weights, dim_from_weights=True, learning_rate=1e-9, text_encoder_lr=0)
    again = run(output="again", save_precision="float", **settings)
    for name, factors in read_factors("it", load_file(again / "it.safetensors")).items():
        torch.testing.assert_close(factors.update("cpu"), theirs[name].update("cpu"), rtol=1e-3, atol=1e-4)


def test_problems_of_images_prompts_and_model_are_told_together(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "prompts.txt").write_text("cat --w big")
    (tmp_path / "model.safetensors").write_bytes(b"<!DOCTYPE html><html>not found</html>")
    with pytest.raises(UserError) as error:
        run(
            train_data_dir=str(tmp_path / "empty"),
            reg_data_dir=None,
            sample_prompts=str(tmp_path / "prompts.txt"),
            pretrained_model_name_or_path=str(tmp_path / "model.safetensors"),
            device="cuda:99",
        )
    for part in ("empty", "prompts.txt:1", "model.safetensors", "cuda:99"):
        assert any(part in problem for problem in error.value.problems), error.value
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


@pytest.mark.slow("starts the program, which imports torch")
def test_the_printed_command_runs_and_bad_flags_end_with_code_2(tiny_model, small_set, tmp_path):
    train, reg = small_set
    values = dict(
        pretrained_model_name_or_path=str(tiny_model("sd1")), train_data_dir=str(train), reg_data_dir=None,
        output_dir=str(tmp_path / "出 力"),
    )  # fmt: skip
    checked, _ = checks.check(values | FEW | dict(max_train_steps=1), {})
    command = command_line.command(checked).replace(str(ROOT / "train_network.py"), "train_network.py")
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "出 力" / "it.safetensors").is_file()
    bad = [sys.executable, "train_network.py", "--network_dims=4"]
    done = subprocess.run(bad, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "network_dim" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_optimizer_that_sets_its_own_rate_tells_it(run):
    folder = run(optimizer_type="Adafactor", max_train_epochs=1)
    rates = [step["lr/unet"] for step in events(folder)[1:]]
    assert all(0 < rate <= 0.01 for rate in rates)
    assert len(rates) > 3
