"""What the file says about itself, entry by entry as web interfaces read it."""

import base64
import dataclasses
import hashlib
import json

import pytest
from PIL import Image

from library.options import sd_scripts
from library.options.checks import check
from library.options.training import Config
from library.storage import metadata
from library.storage.metadata import ModelHashes, Run, build, model_hashes

FAMILY = {
    "ss_v2": "False", "ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora",
    "modelspec.implementation": "diffusers", "modelspec.prediction_type": "epsilon",
}  # fmt: skip
DATA = {
    "ss_num_train_images": 200, "ss_num_reg_images": 50, "ss_num_batches_per_epoch": 100, "ss_num_epochs": 10,
    "ss_max_train_steps": 1000, "ss_resolution": (512, 768), "ss_reg_dataset_dirs": {},
    "ss_dataset_dirs": {"10_girl": {"n_repeats": 10, "img_count": 20}},
    "ss_tag_frequency": {"10_girl": {"1girl": 20, "微笑": 3}},
    "ss_bucket_info": {"buckets": {"0": {"resolution": [512, 768], "count": 200}}, "mean_img_ar_error": 0.01},
}  # fmt: skip
RUN = Run(
    output_name="girl-2", session_id=7, started_at=1700000000.5, saved_at=1700000600.25, epoch=4, step=400,
    optimizer="torch.optim.adamw.AdamW(weight_decay=0.1)", model=ModelHashes("anime.safetensors", "e3b0c442", "00ff"),
)  # fmt: skip
MINIMAL = {
    "ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha",
    "modelspec.sai_model_spec", "modelspec.title", "modelspec.date", "modelspec.resolution", "modelspec.architecture",
    "modelspec.implementation", "modelspec.prediction_type",
}  # fmt: skip
READ_BY_A1111 = {
    "ss_output_name", "ss_base_model_version", "ss_v2", "ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash",
    "ss_clip_skip", "ss_bucket_info", "ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_tag_frequency",
    "ss_num_train_images", "ss_num_reg_images", "ss_training_comment", "ss_resolution", "ss_network_dim",
    "ss_network_alpha", "ss_network_module", "ss_training_started_at", "ss_learning_rate", "ss_unet_lr",
    "ss_text_encoder_lr", "ss_optimizer", "ss_num_epochs", "ss_epoch", "ss_steps", "ss_max_train_steps", "ss_seed",
    "ss_keep_tokens", "ss_mixed_precision", "ss_lr_scheduler", "ss_session_id", "ss_enable_bucket",
}  # fmt: skip


def entries(run=RUN, **options):
    return build(dataclasses.replace(Config(), **options), DATA, FAMILY, run)


def test_everything_that_is_read_by_others_is_there_and_is_text():
    full = entries()
    assert set(full) >= READ_BY_A1111 | MINIMAL
    assert all(isinstance(value, str) for value in full.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ss_network_module", "networks.lora"),
        ("ss_network_dim", "8"),
        ("ss_network_alpha", "4.0"),
        ("ss_unet_lr", "None"),
        ("ss_learning_rate", "0.0002"),
        ("ss_resolution", "(512, 768)"),
        ("modelspec.resolution", "512x768"),
        ("modelspec.title", "girl-2"),
        ("ss_output_name", "girl-2"),
        ("modelspec.encoder_layer", "2"),
        ("ss_clip_skip", "2"),
        ("ss_epoch", "4"),
        ("ss_steps", "400"),
        ("ss_batch_size_per_device", "3"),
        ("ss_total_batch_size", "6"),
        ("ss_sd_model_name", "anime.safetensors"),
        ("ss_training_started_at", "1700000000.5"),
        ("ss_enable_bucket", "True"),
        ("ss_loss_type", "l2"),
    ],
)
def test_entries_have_the_values_of_sd_scripts(name, value):
    options = dict(
        network_dim=8, network_alpha=4.0, learning_rate=2e-4, unet_lr=None, clip_skip=2, train_batch_size=3,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    assert entries(**options)[name] == value


def test_what_auto_came_to_is_told_and_not_the_word():
    decided = {"mixed_precision": "bf16", "gradient_checkpointing": False, "validation_split": 0.1}
    told = entries(run=dataclasses.replace(RUN, decided=decided))
    assert {name: told[f"ss_{name}"] for name in decided} == {
        "mixed_precision": "bf16", "gradient_checkpointing": "False", "validation_split": "0.1",
    }  # fmt: skip
    assert "auto" not in told.values()  # no other option that may be "auto" is told as asked


def test_a_dora_tells_lycoris_along_which_side_its_norms_are():
    args = json.loads(entries(network_module="dora")["ss_network_args"])
    assert {"algo": "lora", "dora_wd": "True", "wd_on_output": "False"}.items() <= args.items()


def test_facts_of_the_data_set_are_json():
    full = entries()
    for name in ("ss_tag_frequency", "ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_bucket_info"):
        assert json.loads(full[name]) == DATA[name]


def test_no_metadata_keeps_what_tools_need_to_use_the_file():
    minimal = entries(no_metadata=True, training_comment="secret")
    assert set(minimal) == MINIMAL
    assert "secret" not in str(minimal)
    assert set(entries(no_metadata=True, clip_skip=2, conv_dim=4)) == MINIMAL | {
        "modelspec.encoder_layer",
        "ss_network_args",
    }


def test_what_the_user_says_stands_in_the_modelspec_also_without_other_metadata(tmp_path):
    image = tmp_path / "small.png"
    Image.new("RGB", (4, 4)).save(image)
    said = entries(no_metadata=True, metadata_title="A title", metadata_author="小明", metadata_thumbnail=str(image))
    assert said["modelspec.title"] == "A title"
    assert said["modelspec.author"] == "小明"
    head, _, data = said["modelspec.thumbnail"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == image.read_bytes()
    assert set(said) == MINIMAL | {"modelspec.author", "modelspec.thumbnail"}
    url = "data:image/webp;base64,UklG"
    assert entries(metadata_thumbnail=url)["modelspec.thumbnail"] == url


def test_every_option_of_the_modelspec_has_its_entry():
    names = [option.name for option in dataclasses.fields(Config) if option.name.startswith("metadata_")]
    said = {name: f"data:image/png;base64,{name}" for name in names}
    for name in names:
        now, before = entries(**{name: said[name]}), entries()
        key = f"modelspec.{name.removeprefix('metadata_')}"
        assert now[key] == said[name] != before.get(key)
        assert {other for other in now if now[other] != before.get(other)} == {key}


def test_convolutions_are_named_in_the_network_args():
    assert "ss_network_args" not in entries(conv_dim=None)
    assert json.loads(entries(conv_dim=4, conv_alpha=2.0)["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "2.0"}


def test_what_sd_scripts_takes_as_network_args_is_written_as_there():
    options = dict(
        rank_dropout=0.1, block_dims=[2, 0, 4], down_lr_weight="cosine", loraplus_lr_ratio=4.0,
        network_reg_dims=["a.*=4", "b=8"], exclude_patterns=["c", "d"], text_encoder_lr=[1e-5, 2e-5],
    )  # fmt: skip
    told = entries(conv_dim=None, **options)
    assert json.loads(told["ss_network_args"]) == {
        "rank_dropout": "0.1", "block_dims": "2,0,4", "down_lr_weight": "cosine", "loraplus_lr_ratio": "4.0",
        "network_reg_dims": "a.*=4,b=8", "exclude_patterns": "['c', 'd']",
    }  # fmt: skip
    assert told["ss_text_encoder_lr"] == "[1e-05, 2e-05]"
    args = [f"{name}={value}" for name, value in json.loads(told["ss_network_args"]).items()]
    again, _, _, problems = sd_scripts.translate({"network_args": args}, {})
    config, _ = check(again, {}, problems)
    assert all(getattr(config, name) == value for name, value in options.items() if name != "text_encoder_lr")


def test_alpha_is_the_rank_where_none_is_given():
    assert entries(network_dim=8, network_alpha=None)["ss_network_alpha"] == "8"


def test_another_vae_is_named_only_if_given():
    assert "ss_vae_name" not in entries()
    run = dataclasses.replace(RUN, vae=ModelHashes("vae.pt", "12345678", "ab"))
    assert entries(run=run)["ss_vae_name"] == "vae.pt"
    assert entries(run=run)["ss_new_vae_hash"] == "ab"


def test_what_is_recorded_as_off_is_no_option_of_ours():
    """An option that is added must be recorded as configured, not as off."""
    options = {f"ss_{option.name}" for option in dataclasses.fields(Config)}
    assert not options & set(metadata.OFF)


def test_model_hashes_are_those_of_web_interfaces(tmp_path):
    data = bytes(range(256)) * 8192  # 2 MiB
    (tmp_path / "model.safetensors").write_bytes(data)
    assert model_hashes(tmp_path / "model.safetensors") == (
        "model.safetensors",
        hashlib.sha256(data[1048576 : 1048576 + 65536]).hexdigest()[:8],
        hashlib.sha256(data).hexdigest(),
    )


def test_a_folder_has_a_name_but_no_hash(tmp_path):
    run = dataclasses.replace(RUN, model=model_hashes(tmp_path))
    assert entries(run=run)["ss_sd_model_name"] == tmp_path.name
    assert "ss_sd_model_hash" not in entries(run=run)
