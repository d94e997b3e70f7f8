"""Names and values of other trainers are understood, or refused with a reason."""

import re
from pathlib import Path

import pytest

from library.messages import set_language
from library.options import command_line, sd_scripts
from library.options.checks import ConfigError, check
from library.options.sd_scripts import translate
from library.options.training import OPTIONS, Config

# Every variable of the script this project descends from, as delivered there, and what it is here.
SEED_SCRIPT = {
    "base_model": ("model.safetensors", "pretrained_model_name_or_path", "model.safetensors"),
    "img_folder": ("train", "train_data_dir", "train"),
    "output_folder": ("out", "output_dir", "out"),
    "change_output_name": (None, "output_name", Config.output_name),
    "save_json_folder": (None, "save_json_folder", None),
    "load_json_path": (None, "load_json_path", None),
    "json_load_skip_list": (None, "json_load_skip_list", None),
    "multi_run_folder": (None, "multi_run_folder", None),
    "net_dim": (128, "network_dim", 128),
    "alpha": (64, "network_alpha", 64.0),
    "scheduler": ("cosine_with_restarts", "lr_scheduler", "cosine_with_restarts"),
    "cosine_restarts": (1, "lr_scheduler_num_cycles", 1),
    "scheduler_power": (1, "lr_scheduler_power", 1.0),
    "warmup_lr_ratio": (None, "lr_warmup_steps", 0),
    "learning_rate": (1e-4, "learning_rate", 1e-4),
    "text_encoder_lr": (None, "text_encoder_lr", None),
    "unet_lr": (None, "unet_lr", None),
    "num_workers": (6, "max_data_loader_n_workers", 6),
    "batch_size": (1, "train_batch_size", 1),
    "num_epochs": (10, "max_train_epochs", 10),
    "save_at_n_epochs": (4, "save_every_n_epochs", 4),
    "shuffle_captions": (False, "shuffle_caption", False),
    "keep_tokens": (None, "keep_tokens", 0),
    "max_steps": (None, "max_train_steps", None),
    "train_resolution": (512, "resolution", 512),
    "min_bucket_resolution": (320, "min_bucket_reso", 320),
    "max_bucket_resolution": (1024, "max_bucket_reso", 1024),
    "buckets": (True, "enable_bucket", True),
    "lora_model_for_resume": (None, "network_weights", None),
    "save_state": (True, "save_state", True),
    "load_previous_save_state": (None, "resume", None),
    "training_comment": (None, "training_comment", None),
    "reg_img_folder": (None, "reg_data_dir", None),
    "clip_skip": (2, "clip_skip", 2),
    "test_seed": (23, "seed", 23),
    "prior_loss_weight": (1, "prior_loss_weight", 1.0),
    "gradient_checkpointing": (False, "gradient_checkpointing", False),
    "gradient_acc_steps": (None, "gradient_accumulation_steps", 1),
    "mixed_precision": ("fp16", "mixed_precision", "fp16"),
    "save_precision": ("fp16", "save_precision", "fp16"),
    "save_as": ("safetensors", "save_model_as", "safetensors"),
    "caption_extension": (".txt", "caption_extension", ".txt"),
    "max_clip_token_length": (150, "max_token_length", 150),
    "xformers": (False, None, None),
    "use_8bit_adam": (False, "optimizer_type", Config.optimizer_type),
    "cache_latents": (True, "cache_latents", True),
    "color_aug": (False, "color_aug", False),
    "flip_aug": (False, "flip_aug", False),
    "random_crop": (False, "random_crop", False),
    "vae": (None, "vae", None),
    "no_meta": (False, "no_metadata", False),
    "log_dir": ("logs", "logging_dir", "logs"),
    "unet_only": (False, "network_train_unet_only", False),
    "text_only": (False, "network_train_text_encoder_only", False),
    "use_lion": (False, "optimizer_type", Config.optimizer_type),
    "bucket_reso_steps": (None, "bucket_reso_steps", None),
    "bucket_no_upscale": (False, "bucket_no_upscale", False),
    "noise_offset": (None, "noise_offset", None),
    "caption_dropout_rate": (None, "caption_dropout_rate", 0.0),
    "caption_dropout_every_n_epochs": (None, "caption_dropout_every_n_epochs", None),
    "caption_tag_dropout_rate": (None, "caption_tag_dropout_rate", 0.0),
    "v2": (False, None, None),
    "v_parameterization": (False, "v_parameterization", False),
    "lowram": (False, "lowram", False),
    "persistent_workers": (False, None, None),
    "tag_occurrence_txt_file": (True, "tag_occurrence_txt_file", True),
    "sort_tag_occurrence_alphabetically": (False, "sort_tag_occurrence_alphabetically", False),
}


@pytest.fixture(autouse=True)
def _english():
    set_language("en")
    yield
    set_language("en")


def test_a_whole_block_of_the_seed_script_is_understood(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "train").mkdir()
    old = {name: value for name, (value, _, _) in SEED_SCRIPT.items()}
    values, where, _, problems = translate(old, {})
    config, _ = check(values, where, problems)
    for name, (_, present, value) in SEED_SCRIPT.items():
        assert present is None or getattr(config, present) == value, name


@pytest.mark.parametrize("name", [name for name, (_, present, _) in SEED_SCRIPT.items() if present not in (name, None)])
def test_an_earlier_name_is_answered_with_the_present_one(name):
    old, present, _ = SEED_SCRIPT[name]
    value = True if name in sd_scripts.SWITCHES else old or 1
    values, where, notices, problems = translate({name: value}, {name: "block.py:7"})
    assert list(values) == [present]
    assert where[present] == "block.py:7"
    assert problems == []
    (notice,) = notices
    assert notice.startswith(f"block.py:7: {name} is now written {present}")


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        ({"warmup_lr_ratio": 0.05}, {"lr_warmup_steps": 0.05}),
        ({"lr_warmup": "10"}, {"lr_warmup_steps": 0.1}),
        ({"use_lion": True}, {"optimizer_type": "Lion"}),
        ({"use_lion": False}, {}),
        ({"change_output_name": None}, {}),
        ({"gradient_acc_steps": None}, {"gradient_accumulation_steps": 1}),
        ({"max_token_length": None}, {"max_token_length": 75}),
        ({"save_precision": None}, {"save_precision": "float"}),
        ({"save_precision": "fp32"}, {"save_precision": "float"}),
        ({"mixed_precision": "FP32"}, {"mixed_precision": "no"}),
        ({"network_module": "networks.lora"}, {"network_module": "lora"}),
        ({"network_args": ["conv_dim=4", "conv_alpha=1"]}, {"conv_dim": 4, "conv_alpha": 1}),
        ({"network_module": "lycoris.kohya"}, {"network_module": "lora"}),
        (
            {"network_args": ["algo=lokr", "factor=8"], "network_module": "lycoris.kohya"},
            {"network_module": "lokr", "lokr_factor": 8, "conv_dim": 32, "conv_alpha": 32.0},
        ),
        (
            {
                "network_module": "lycoris.kohya",
                "network_args": "algo=LoHa factor=-1 rs_lora=True preset=attn-mlp use_tucker=False verbose=True",
            },
            {"network_module": "loha", "lokr_factor": None, "rs_lora": True},
        ),
        (
            {"network_args": ["preset=unet-transformer-only", "dropout=0.1", "rank_dropout=0.2", "module_dropout=0.3"]},
            {
                "network_train_unet_only": True,
                "network_dropout": 0.1,
                "rank_dropout": 0.2,
                "module_dropout": 0.3,
            },
        ),
        (
            {"network_args": ["block_dims=0,4,4", "down_lr_weight=cosine+.1", "loraplus_unet_lr_ratio=4"]},
            {"block_dims": "0,4,4", "down_lr_weight": "cosine+.1", "loraplus_unet_lr_ratio": 4},
        ),
        (
            {
                "network_args": [
                    "network_reg_dims=a.*=4,b=8",
                    "exclude_patterns=[r'a\\.b', 'c']",
                    "include_patterns=d.*",
                ]
            },
            {"network_reg_dims": "a.*=4,b=8", "exclude_patterns": [r"a\.b", "c"], "include_patterns": ["d.*"]},
        ),
        (
            {"network_module": "lycoris.kohya", "network_args": ["algo=locon", "dora_wd=True", "conv_dim=2"]},
            {"network_module": "dora", "conv_dim": 2},
        ),
        ({"LoRA_type": "LyCORIS/LoKr"}, {"network_module": "lokr"}),
        ({"max_resolution": "512,512", "epoch": "10"}, {"resolution": "512,512", "max_train_epochs": 10}),
        ({"optimizer_type": ""}, {"optimizer_type": "AdamW"}),
        ({"sdpa": True, "persistent_data_loader_workers": True}, {}),
        ({"full_fp16": False, "dataset_repeats": 1}, {"dataset_repeats": 1}),
        ({"masked_loss": True, "alpha_mask": True}, {"masked_loss": True, "alpha_mask": True}),
        ({"unheard_of": 1}, {"unheard_of": 1}),  # check says so
    ],
)
def test_values_are_understood(given, understood):
    values, _, _, problems = translate(given, {})
    assert values == understood
    assert problems == []


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"huggingface_repo_id": "me/mine"},
            "huggingface_repo_id is not supported: nothing is uploaded. When the run has ended: "
            "hf upload NAME/REPOSITORY output/mytag.safetensors",
        ),
        (
            {"full_bf16": True, "mixed_precision": "fp16"},
            'full_bf16 = "bf16" and mixed_precision = "fp16" are the same thing. Delete one',
        ),
        (
            {"dataset_class": "mine.Set"},
            "dataset_class is not supported: it runs a Python class of your own; describe the images in dataset_config "
            "instead",
        ),
        (
            {"network_args": ["algo=boft"]},
            f'network_args: "algo=boft" is not supported; only {", ".join(sd_scripts.KNOWN_ARGUMENTS)} are (algo: '
            "lora, locon, loha, lokr; preset: full, attn-mlp, attn-only, unet-transformer-only)",
        ),
        (
            {"network_args": ["algo=lokr", "dora_wd=True"]},
            "network_args: dora_wd with algo=lokr is not supported; with algo=lora it is",
        ),
        (
            {"net_dim": 8, "network_dim": 16},
            "net_dim = 8 and network_dim = 16 are the same thing. Delete one",
        ),
    ],
)
def test_what_is_not_offered_is_refused_with_a_reason(given, problem):
    assert translate(given, {})[3] == [problem]


def test_what_has_no_effect_is_told_with_the_reason():
    assert translate({"sdpa": True}, {"sdpa": "--sdpa"})[2] == [
        "--sdpa has no effect: torch's own memory-efficient attention is used in any case"
    ]
    assert translate({"sdpa": False}, {})[2] == []


def test_an_earlier_name_pasted_into_the_block_beats_the_default_there():
    assert translate({"network_dim": Config.network_dim, "net_dim": 7}, {})[0] == {"network_dim": 7}


def test_a_flag_beats_a_file_also_under_an_earlier_name():
    where = {"network_dim": "x.toml:1", "net_dim": "--net_dim"}
    values, where, _, problems = translate({"network_dim": 16, "net_dim": 8}, where)
    assert (values, where["network_dim"], problems) == ({"network_dim": 8}, "--net_dim", [])


def test_a_wrong_value_under_an_earlier_name_is_told_at_its_place(tmp_path):
    given = {"base_model": str(tmp_path), "img_folder": str(tmp_path), "net_dim": 0}
    values, where, _, problems = translate(given, {"net_dim": "block.py:9"})
    with pytest.raises(ConfigError) as caught:
        check(values, where, problems)
    assert caught.value.problems == ["block.py:9: network_dim = 0 is below 1, the least possible"]


IMPOSSIBLE = [  # what sd-scripts refuses or cannot do, and how that is put right here
    (
        "--cache_latents --color_aug",
        "--color_aug True changes the images at every use, so they cannot be cached. Set cache_latents to False, "
        "or this",
    ),
    ("--adaptive_noise_scale 0.01", "--adaptive_noise_scale 0.01 needs noise_offset; set it, e.g. 0.05"),
    (
        "--v_pred_like_loss 0.5 --v_parameterization",
        "--v_pred_like_loss 0.5 is for epsilon models, and v_parameterization says that this is a v model. Remove one "
        "of them",
    ),
    (
        "--scale_v_pred_loss_like_noise_pred --v_pred_like_loss 0.5",
        "--scale_v_pred_loss_like_noise_pred True is for v models, v_pred_like_loss for epsilon models. Remove one "
        "of them",
    ),
    (
        "--full_fp16 --mixed_precision bf16",
        '--full_fp16 = "fp16" and --mixed_precision = "bf16" are the same thing. Delete one',
    ),
    (
        "--use_8bit_adam --optimizer_type Lion",
        '--use_8bit_adam = "AdamW8bit" and --optimizer_type = "Lion" are the same thing. Delete one',
    ),
    (
        "--use_8bit_adam --use_lion_optimizer",
        '--use_lion_optimizer = "Lion" and --optimizer_type = "AdamW8bit" are the same thing. Delete one',
    ),
    (
        "--use_lion_optimizer --optimizer_type Prodigy",
        '--use_lion_optimizer = "Lion" and --optimizer_type = "Prodigy" are the same thing. Delete one',
    ),
    (
        "--cache_text_encoder_outputs",
        "--cache_text_encoder_outputs True is not possible while the text encoder is trained. Set text_encoder_lr to "
        "0, or this to False",
    ),
    (
        "--network_train_unet_only --network_train_text_encoder_only",
        "--network_train_unet_only True can't be combined with network_train_text_encoder_only. Set one of them to "
        "False",
    ),
    (
        "--lr_scheduler constant --lr_warmup_steps 10",
        '--lr_warmup_steps 10 has no effect with lr_scheduler = "constant", which has no warmup. Use '
        '"constant_with_warmup", or set it to 0',
    ),
    (
        "--log_with tensorboard",
        '--log_with "tensorboard" needs logging_dir: the folder for TensorBoard. Set it, e.g. "logs", or remove '
        "log_with",
    ),
]


def checked(line, tmp_path):
    """A command line as `train_network.main` reads it, with places that exist."""
    places = ["--pretrained_model_name_or_path", str(tmp_path), "--train_data_dir", str(tmp_path)]
    values, where, notices, problems = translate(*command_line.parse([*places, *line.split()]))
    config, warnings = check(values, where, problems)
    return config, notices + warnings


@pytest.mark.parametrize(("line", "problem"), IMPOSSIBLE, ids=[line for line, _ in IMPOSSIBLE])
def test_what_cannot_go_together_is_refused_with_the_cure(line, problem, tmp_path):
    with pytest.raises(ConfigError) as caught:
        checked(line, tmp_path)
    assert caught.value.problems == [problem]


def test_what_is_possible_here_though_not_there_is_taken(tmp_path):
    config, lines = checked(
        "--fp8_base --mixed_precision no --cache_latents_to_disk --sample_every_n_steps -1", tmp_path
    )
    assert config.int8_base
    assert config.cache_latents
    assert config.sample_every_n_steps is None
    assert "--fp8_base is now written --int8_base True (8 bits as well, with less rounding, and on any device)" in lines
    assert checked("--full_bf16", tmp_path)[0].mixed_precision == "bf16"


def test_flags_without_effect_are_told_in_one_line_for_each_reason():
    given = {"sdpa": True, "mem_eff_attn": True, "highvram": True, "fused_backward_pass": False}
    assert translate(given, dict.fromkeys(given, "--x"))[2] == [
        "--sdpa, --mem_eff_attn have no effect: torch's own memory-efficient attention is used in any case",
        "--highvram has no effect: memory is managed automatically",
    ]


@pytest.mark.parametrize("name", ["xformers", "use_8bit_adam", "v2", "mem_eff_attn", "sdpa"])
@pytest.mark.parametrize("value", [False, None, "", "false", "None", 0])
def test_a_name_that_is_not_ours_says_nothing_where_it_asks_for_nothing(name, value):
    """As delivered blocks and presets of earlier versions held some of them."""
    assert translate({name: value}, {name: "block.py:7"}) == ({}, {name: "block.py:7"}, [], [])
    assert translate({f"no_{name}": True}, {}).values == {}


def test_8bit_adam_by_its_earlier_switch():
    given = {"use_8bit_adam": True, "optimizer_type": "AdamW"}
    values, _, notices, problems = translate(given, {"use_8bit_adam": "block.py:50"})
    assert (values, problems) == ({"optimizer_type": "AdamW8bit"}, [])
    assert notices == ['block.py:50: use_8bit_adam is now written optimizer_type = "AdamW8bit"']


FLAGS = (Path(__file__).parents[1] / "golden" / "sd_scripts_flags.txt").read_text().split()
ELSEWHERE = command_line.OWN | {"network_args"}  # read by `arguments` and by `translate` itself


def test_every_flag_of_sd_scripts_is_answered():
    """Those of its train_network.py, of which about 150 act here, under the same name or a present one."""
    answers = {
        "taken": [flag for flag in FLAGS if flag in OPTIONS or flag in ELSEWHERE],
        "renamed": [flag for flag in FLAGS if flag in sd_scripts.RENAMED or flag in sd_scripts.SWITCHES],
        "without effect, and said so": [flag for flag in FLAGS if flag in sd_scripts.WITHOUT_EFFECT],
        "refused with a reason": [flag for flag in FLAGS if flag in sd_scripts.REFUSED],
    }
    print({answer: len(flags) for answer, flags in answers.items()})
    assert len(FLAGS) == len(set(FLAGS)) == 193
    assert sorted(FLAGS) == sorted(flag for flags in answers.values() for flag in flags)
    assert len(answers["taken"]) >= 147


def test_the_tables_lead_to_present_names_and_do_not_overlap():
    assert set(sd_scripts.RENAMED.values()) <= set(OPTIONS)
    tables = [sd_scripts.RENAMED, sd_scripts.SWITCHES, sd_scripts.WITHOUT_EFFECT, sd_scripts.REFUSED, OPTIONS]
    names = [name for table in tables for name in table]
    assert len(names) == len(set(names))
    assert {*sd_scripts.NONE_MEANT, *sd_scripts.SPELLINGS, *(name for name, _ in sd_scripts.REFUSED_VALUES)} <= set(
        OPTIONS
    )


def test_every_reason_is_told_in_both_languages():
    reasons = [
        *sd_scripts.WITHOUT_EFFECT.values(),
        *(why for _, why in sd_scripts.REFUSED.values()),
        *sd_scripts.REFUSED_VALUES.values(),
    ]
    for english, chinese in reasons:
        assert english.isascii()
        assert re.search("[\u4e00-\u9fff]", chinese)
        assert not re.search(r"\b[a-z]+ [a-z]+ [a-z]+\b", chinese)
