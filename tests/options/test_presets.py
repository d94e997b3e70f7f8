"""Presets of other trainers' windows train as they would there; what does not count here is said.

The presets have the keys and values of files that come with kohya_ss (test/config/locon-AdamW8bit.json,
test/config/LoKR-AdamW8bit-toml.json) and with lora-scripts (config/default.toml, mikazuki/schema/lora-master.ts).
"""

import json
import re

import pytest

from library.options import config_files, parameter_block, sd_scripts
from library.options.checks import ConfigError, check
from library.options.training import Config

# What kohya_ss writes into every preset, whatever is trained.
WINDOW = {
    "LoRA_type": "Standard", "LyCORIS_preset": "full", "adaptive_noise_scale": 0, "additional_parameters": "",
    "ae": "", "async_upload": False, "block_alphas": "", "block_dims": "", "block_lr_zero_threshold": "",
    "blocks_to_swap": 0, "bucket_no_upscale": True, "bucket_reso_steps": 64, "bypass_mode": False,
    "cache_latents": True, "cache_latents_to_disk": False, "caption_dropout_every_n_epochs": 0.0,
    "caption_dropout_rate": 0.05, "caption_extension": "", "clip_skip": "2", "color_aug": False, "constrain": 0.0,
    "conv_alpha": 1, "conv_block_alphas": "", "conv_block_dims": "", "conv_dim": 1, "dataset_config": "",
    "debiased_estimation_loss": False, "decompose_both": False, "dim_from_weights": False, "discrete_flow_shift": 3,
    "dora_wd": False, "down_lr_weight": "", "dynamo_backend": "no", "dynamo_mode": "default",
    "dynamo_use_dynamic": False, "enable_bucket": True, "epoch": 8, "extra_accelerate_launch_args": "", "factor": -1,
    "flip_aug": False, "flux1_checkbox": False, "fp8_base": False, "full_bf16": False, "full_fp16": False,
    "gpu_ids": "", "gradient_accumulation_steps": 1, "gradient_checkpointing": False, "guidance_scale": 3.5,
    "huber_c": 0.1, "huber_schedule": "snr", "huggingface_repo_id": "", "ip_noise_gamma": 0,
    "ip_noise_gamma_random_strength": False, "keep_tokens": "0", "learning_rate": 0.0005, "log_tracker_config": "",
    "log_tracker_name": "", "log_with": "", "logging_dir": "", "logit_mean": 0, "logit_std": 1, "loss_type": "l2",
    "lora_network_weights": "", "lr_scheduler": "constant", "lr_scheduler_args": "", "lr_scheduler_num_cycles": "",
    "lr_scheduler_power": "", "lr_warmup": 0, "lr_warmup_steps": 0, "main_process_port": 0, "max_bucket_reso": 2048,
    "max_data_loader_n_workers": "0", "max_grad_norm": 1, "max_resolution": "512,512", "max_timestep": 1000,
    "max_token_length": "75", "max_train_epochs": "", "max_train_steps": "", "mem_eff_attn": False,
    "metadata_author": "", "mid_lr_weight": "", "min_bucket_reso": 256, "min_snr_gamma": 0, "min_timestep": 0,
    "mixed_precision": "bf16", "model_list": "custom", "module_dropout": 0, "multi_gpu": False,
    "multires_noise_discount": 0, "multires_noise_iterations": 0, "network_alpha": 8, "network_dim": 16,
    "network_dropout": 0.1, "no_token_padding": False, "noise_offset": 0.05, "noise_offset_random_strength": True,
    "noise_offset_type": "Original", "num_cpu_threads_per_process": 2, "num_machines": 1, "num_processes": 1,
    "optimizer": "AdamW8bit", "optimizer_args": "", "output_name": "locon", "persistent_data_loader_workers": False,
    "prior_loss_weight": 1.0, "random_crop": False, "rank_dropout": 0, "rank_dropout_scale": False,
    "reg_data_dir": "", "rescaled": False, "resume": "", "sample_every_n_epochs": 0, "sample_every_n_steps": 25,
    "sample_prompts": "a painting of a gas mask , by darius kawasaki", "sample_sampler": "euler_a",
    "save_as_bool": False, "save_every_n_epochs": 1, "save_every_n_steps": 0, "save_last_n_steps": 0,
    "save_last_n_steps_state": 0, "save_model_as": "safetensors", "save_precision": "fp16", "save_state": False,
    "save_state_on_train_end": False, "scale_v_pred_loss_like_noise_pred": False, "scale_weight_norms": 1,
    "sd3_checkbox": False, "sdxl": False, "sdxl_cache_text_encoder_outputs": False, "sdxl_no_half_vae": True,
    "seed": "1234", "shuffle_caption": False, "stop_text_encoder_training": 0, "t5xxl_dtype": "bf16",
    "text_encoder_lr": 0.0001, "timestep_sampling": "sigma", "train_batch_size": 4, "train_blocks": "all",
    "train_norm": False, "train_on_input": False, "training_comment": "", "unet_lr": 0.0001, "unit": 1,
    "up_lr_weight": "", "use_cp": False, "use_scalar": False, "use_tucker": False, "use_wandb": False, "v2": False,
    "v_parameterization": False, "v_pred_like_loss": 0, "vae": "", "vae_batch_size": 0, "wandb_api_key": "",
    "wandb_run_name": "", "weighted_captions": False, "weighting_scheme": "logit_normal", "xformers": "xformers",
}  # fmt: skip
LORA_SCRIPTS = """
[model]
model_train_type = "sd-lora"
v2 = false
[dataset]
reg_data_dir = ""
prior_loss_weight = 1
cache_latents = true
shuffle_caption = true
enable_bucket = true
[additional_network]
network_dim = 32
network_alpha = 16
network_module = "networks.lora"
network_args = []
enable_block_weights = false
down_lr_weight = "0,0,1,1,1,1,1,1,1,1,1,1"
enable_base_weight = false
base_weights = "nowhere.safetensors"
[optimizer]
unet_lr = 1e-4
text_encoder_lr = 1e-4
learning_rate = "1e-4"
optimizer_type = "Prodigy"
prodigy_d0 = ""
prodigy_d_coef = "2.0"
optimizer_args_custom = ["weight_decay=0.01"]
lr_scheduler = "cosine_with_restarts"
lr_restart_cycles = 2
[training]
resolution = "512,512"
max_train_epochs = 10
noise_offset = 0.0
xformers = true
full_bf16 = true
max_token_length = 255
[sample_prompt]
enable_preview = true
positive_prompts = "1girl, solo"
negative_prompts = "lowres"
sample_width = 512
sample_height = 768
sample_cfg = 7
sample_seed = 2333
sample_steps = 24
sample_every_n_epochs = 2
[saving]
save_n_epoch_ratio = 0
save_last_n_epochs = 499
log_prefix = "output_name"
ui_custom_params = "seed = 5"
"""


# The variables of lora-scripts' train.sh and train.ps1 as delivered; paths are those of the test.
TRAIN_SH = {
    "is_v2_model": 0, "parameterization": 0, "reg_data_dir": "", "network_module": "networks.lora",
    "network_weights": "", "network_dim": 32, "network_alpha": 32, "resolution": "512,512", "batch_size": 1,
    "max_train_epoches": 10, "save_every_n_epochs": 2, "train_unet_only": 0, "train_text_encoder_only": 0,
    "stop_text_encoder_training": 0, "noise_offset": "0", "keep_tokens": 0, "min_snr_gamma": 0, "lr": "1e-4",
    "unet_lr": "1e-4", "text_encoder_lr": "1e-5", "lr_scheduler": "cosine_with_restarts", "lr_warmup_steps": 0,
    "lr_restart_cycles": 1, "output_name": "aki", "save_model_as": "safetensors", "save_state": 0, "resume": "",
    "min_bucket_reso": 256, "max_bucket_reso": 1024, "persistent_data_loader_workers": 0, "clip_skip": 2,
    "multi_gpu": 0, "lowram": 0, "optimizer_type": "AdamW8bit", "algo": "lora", "conv_dim": 4, "conv_alpha": 4,
    "dropout": "0", "use_wandb": 0, "wandb_api_key": "", "log_tracker_name": "",
}  # fmt: skip


@pytest.fixture
def read(tmp_path):
    """read("p.json", preset) -> the configuration, and every line that is said."""
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "set").mkdir()
    places = {
        "pretrained_model_name_or_path": str(tmp_path / "model.safetensors"),
        "train_data_dir": str(tmp_path / "set"),
    }

    def read(name: str, preset: dict | str) -> tuple[Config, list[str]]:
        path = tmp_path / name
        path.write_text(json.dumps(places | preset, indent=1) if isinstance(preset, dict) else preset, encoding="utf-8")
        values, where = config_files.read_values(path)
        values, where, notices, problems = sd_scripts.translate(places | values, where)
        config, warnings = check(values, where, problems)
        return config, [re.sub(rf"^{re.escape(name)}:\d+: ", "", line) for line in notices + warnings]

    return read


def test_a_preset_of_kohya_ss_is_taken(read):
    config, _ = read("p.json", WINDOW)
    expected = dict(
        network_module="lora", conv_dim=None, network_dim=16, network_alpha=8.0, network_dropout=0.1, clip_skip=2,
        max_train_epochs=8, max_train_steps=None, optimizer_type="AdamW8bit", optimizer_args=None,
        learning_rate=5e-4, lr_warmup_steps=0, resolution=512, seed=1234, noise_offset=0.05, mixed_precision="bf16",
        sample_prompts="a painting of a gas mask , by darius kawasaki", sample_every_n_steps=25,
        sample_every_n_epochs=None, reg_data_dir=None, no_half_vae=True, caption_extension=".txt",
        stop_text_encoder_training=None, lokr_factor=None, scale_weight_norms=1.0, vae_batch_size=None,
    )  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected


def test_what_does_not_count_in_a_preset_is_told_by_reason(read):
    _, lines = read("p.json", WINDOW)
    unheard = "it is for FLUX, SD3 and others, which are not trained here"
    assert "xformers has no effect: torch's own memory-efficient attention is used in any case" in lines
    assert [line for line in lines if " have no effect" in line] == [
        'conv_dim, conv_alpha have no effect: LoRA_type = "Standard"',
        "discrete_flow_shift, guidance_scale, logit_std, t5xxl_dtype, timestep_sampling, train_blocks, "
        f"weighting_scheme have no effect: {unheard}",
        "model_list, num_cpu_threads_per_process have no effect: it belongs to another program's window or launcher",
    ]


@pytest.mark.parametrize(
    ("change", "understood"),
    [
        ({"LoRA_type": "Kohya LoCon", "conv_dim": 16}, dict(network_module="lora", conv_dim=16, conv_alpha=1.0)),
        (
            {"LoRA_type": "LyCORIS/LoCon", "conv_dim": 4, "dora_wd": True, "network_dropout": 0},
            dict(network_module="dora", conv_dim=4),
        ),
        ({"LoRA_type": "LyCORIS/LoHa", "network_dropout": 0}, dict(network_module="loha")),
        ({"LoRA_type": "LyCORIS/LoKr", "factor": 6, "network_dropout": 0}, dict(network_module="lokr", lokr_factor=6)),
        ({"max_train_epochs": "12"}, dict(max_train_epochs=12, max_train_steps=None)),
        ({"max_train_steps": 0, "max_train_epochs": 0}, dict(max_train_epochs=8, max_train_steps=None)),
        ({"max_train_steps": 900, "max_train_epochs": 0}, dict(max_train_steps=900)),
        ({"lr_warmup": 10, "lr_scheduler": "cosine"}, dict(lr_warmup_steps=0.1)),
        ({"lr_warmup": 10, "lr_warmup_steps": 50, "lr_scheduler": "cosine"}, dict(lr_warmup_steps=50)),
        ({"stop_text_encoder_training": 50}, dict(stop_text_encoder_training=0.5)),
        (
            {"noise_offset_type": "Multires", "multires_noise_iterations": 8, "multires_noise_discount": 0.2},
            dict(noise_offset=None, multires_noise_iterations=8, multires_noise_discount=0.2),
        ),
        (
            {"optimizer": "Prodigy", "optimizer_args": '"d0=1e-5" "d_coef=1.0"'},
            dict(optimizer_type="Prodigy", optimizer_args=["d0=1e-5", "d_coef=1.0"]),
        ),
        (
            {"additional_parameters": '--lr_scheduler_type "CosineAnnealingLR" --lr_scheduler_args "T_max=9" "a=0"'},
            dict(lr_scheduler_type="CosineAnnealingLR", lr_scheduler_args=["T_max=9", "a=0"]),
        ),
        ({"full_bf16": True}, dict(mixed_precision="bf16")),
        ({"fp8_base": True}, dict(int8_base=True)),
        ({"block_dims": ",".join(["4"] * 25)}, dict(block_dims=[4] * 25)),
        ({"text_encoder_lr": ""}, dict(text_encoder_lr=None)),
        (  # 0 is "not given" in kohya_ss's window
            {"text_encoder_lr": 0, "unet_lr": 0.0, "learning_rate": 2e-4},
            dict(text_encoder_lr=None, unet_lr=None, learning_rate=2e-4),
        ),
        ({"text_encoder_lr": "0", "unet_lr": "0"}, dict(text_encoder_lr=None, unet_lr=None, learning_rate=5e-4)),
        ({"text_encoder_lr": 0, "learning_rate": 0}, dict(text_encoder_lr=0.0, unet_lr=1e-4, learning_rate=None)),
        (
            {
                "seed": 0,
                "prior_loss_weight": 0,
                "max_grad_norm": 0,
                "max_timestep": 0,
                "network_alpha": 0,
                "huber_c": 0,
            },
            dict(
                seed=None, prior_loss_weight=1.0, max_grad_norm=1.0, max_timestep=1000, network_alpha=1.0, huber_c=0.1
            ),
        ),
        ({"enable_bucket": False}, dict(enable_bucket=False)),
        ({"lr_scheduler": "cosine_with_restarts"}, dict(lr_scheduler_num_cycles=8)),
        ({"lr_scheduler": "cosine_with_restarts", "lr_scheduler_num_cycles": 2}, dict(lr_scheduler_num_cycles=2)),
        ({"use_cp": True, "train_norm": True}, dict(network_module="lora")),
    ],
)
def test_values_that_say_something_about_others_are_understood(read, change, understood):
    config, _ = read("p.json", WINDOW | change)
    assert {name: getattr(config, name) for name in understood} == understood


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"LoRA_type": "LyCORIS/iA3"}, 'network_module = "LyCORIS/iA3" is not one of'),
        (
            {"flux1_checkbox": True},
            "flux1_checkbox is not supported: only Stable Diffusion 1.x, 2.x and XL are trained here",
        ),
        (
            {"use_scalar": True, "LoRA_type": "LyCORIS/LoCon"},
            "use_scalar is not supported: this network argument is not supported here",
        ),
        ({"a_key_of_tomorrow": 0}, "a_key_of_tomorrow: there is no such parameter."),
        ({"additional_parameters": "fast"}, "additional_parameters: cannot be read"),
        ({"sample_prompts": "prompt.txt"}, 'sample_prompts = "prompt.txt" does not exist'),
    ],
)
def test_what_cannot_be_done_is_refused_at_its_line(read, change, problem):
    with pytest.raises(ConfigError) as caught:
        read("p.json", WINDOW | change)
    (told,) = caught.value.problems
    assert re.match(rf"p\.json:\d+: {re.escape(problem)}", told)


def test_a_zero_that_is_no_number_is_told(read):
    _, lines = read("p.json", WINDOW | {"text_encoder_lr": 0, "unet_lr": 0, "seed": 0})
    assert "seed, text_encoder_lr, unet_lr: 0 there means not given, as in the window that wrote this preset" in lines


def test_a_preset_of_lora_scripts_is_taken(read):
    config, lines = read("p.toml", LORA_SCRIPTS)
    expected = dict(
        network_dim=32, network_alpha=16.0, down_lr_weight=None, base_weights=None, unet_lr=1e-4, text_encoder_lr=1e-4,
        learning_rate=1e-4, optimizer_type="Prodigy", optimizer_args=["weight_decay=0.01", "d_coef=2.0"],
        lr_scheduler_num_cycles=2, mixed_precision="bf16", max_token_length=225, seed=5, save_n_epoch_ratio=None,
        sample_prompts="1girl, solo --n lowres --w 512 --h 768 --l 7 --s 24 --d 2333", sample_every_n_epochs=2,
        save_last_n_epochs=499, log_prefix="output_name", shuffle_caption=True, reg_data_dir=None,
    )  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected
    assert "model_train_type has no effect: the base model is detected automatically" in lines


def test_a_preset_of_lora_scripts_may_name_its_file_of_prompts(read, tmp_path):
    (tmp_path / "prompts.txt").touch()
    file = (tmp_path / "prompts.txt").as_posix()
    config, _ = read(
        "p.toml", LORA_SCRIPTS.replace("enable_preview = true", f'enable_preview = true\nprompt_file = "{file}"')
    )
    assert config.sample_prompts == file


def test_a_template_of_lora_scripts_is_taken_and_its_description_told(read):
    text = '[metadata]\nname = "LoKr"\nauthor = "me"\n[data]\nnetwork_module = "lycoris.kohya"\nlycoris_algo = "lokr"\n'
    config, lines = read("p.toml", text + "conv_dim = 8\nlokr_factor = 8\n")
    assert (config.network_module, config.lokr_factor, config.conv_dim) == ("lokr", 8, 8)
    assert "name, author have no effect: it describes the preset" in lines


@pytest.fixture
def pasted(tmp_path):
    """pasted(variables) -> the configuration and notices, as if they stood in the parameter block."""
    (tmp_path / "model.ckpt").touch()
    (tmp_path / "aki").mkdir()
    paths = {"pretrained_model": str(tmp_path / "model.ckpt"), "train_data_dir": str(tmp_path / "aki")}

    def pasted(variables: dict) -> tuple[Config, list[str]]:
        values, where, notices, problems = sd_scripts.translate(paths | variables, {})
        return check(values, where, problems)[0], notices

    return pasted


def test_the_variables_of_train_sh_are_taken(pasted):
    config, notices = pasted(TRAIN_SH)
    expected = dict(
        learning_rate=1e-4, unet_lr=1e-4, text_encoder_lr=1e-5, max_train_epochs=10, train_batch_size=1,
        network_train_unet_only=False, v_parameterization=False, network_dropout=None, min_snr_gamma=None,
        noise_offset=0.0, stop_text_encoder_training=None, conv_dim=None, lr_scheduler_num_cycles=1, resume=None,
    )  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected
    assert 'conv_dim, conv_alpha have no effect: network_module = "networks.lora"' in notices


def test_the_variables_of_train_sh_choose_the_kind_of_network(pasted):
    config, _ = pasted(TRAIN_SH | {"network_module": "lycoris.kohya", "algo": "loha", "train_unet_only": 1})
    assert (config.network_module, config.conv_dim, config.conv_alpha) == ("loha", 4, 4.0)
    assert config.network_train_unet_only


@pytest.mark.parametrize("name", ["optimizer_args", "lr_scheduler_args", "network_args"])
@pytest.mark.parametrize("value", ['"', 'a="1', 1, {}, [[]], None])
def test_arguments_of_no_known_form_are_no_traceback(name, value):
    sd_scripts.translate({name: value, f"{name}_custom": value, "LoRA_type": "Standard"}, {})


def test_prompts_of_a_preset_are_drawn():
    from library.diffusion import sampling

    first, second = sampling.prompts_of("a cat --n dog --w 64 --s 3\n\n# not this\na dog")
    assert (first.text, first.negative, first.width, first.step_count) == ("a cat", "dog", 64, 3)
    assert second.text == "a dog"


def test_the_block_takes_the_same_presets(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text(LORA_SCRIPTS, encoding="utf-8")
    values, where = parameter_block.load_preset(path)
    assert values == config_files.read_values(path)[0]
    assert where["network_dim"] == "p.toml:12"
