"""Commands of sd-scripts' documentation train here: paths are ours, steps are few, all else is as it stands there.

Sources: sd-scripts, docs/train_network.md and docs/loha_lokr.md (2026), docs/train_network_README-zh.md (2023), and
train_network_README-ja.md as it was in January 2023; the last one is from a guide for Kaggle (2026).
"""

import re
import shlex

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

import train_network

DREAMBOOTH = """
accelerate launch --num_cpu_threads_per_process 1 train_network.py
    --pretrained_model_name_or_path={model}
    --train_data_dir={train} --output_dir={output}
    --reg_data_dir={reg} --prior_loss_weight=1.0
    --resolution=448,640 --train_batch_size=1 --learning_rate=1e-4
    --max_train_steps=400 --use_8bit_adam --xformers --mixed_precision=fp16
    --save_every_n_epochs=1 --save_model_as=safetensors --clip_skip=2 --seed=42 --color_aug
    --network_module=networks.lora
"""
README_2023 = """
accelerate launch --num_cpu_threads_per_process 1 train_network.py
    --pretrained_model_name_or_path={model}
    --dataset_config={toml}
    --output_dir={output}
    --output_name=it
    --save_model_as=safetensors
    --prior_loss_weight=1.0
    --max_train_steps=400
    --learning_rate=1e-4
    --optimizer_type="AdamW8bit"
    --xformers
    --mixed_precision="fp16"
    --cache_latents
    --gradient_checkpointing
    --save_every_n_epochs=1
    --network_module=networks.lora
"""
DOCUMENTATION_2026 = """
accelerate launch --num_cpu_threads_per_process 1 train_network.py
 --pretrained_model_name_or_path={model}
 --dataset_config={toml}
 --output_dir={output}
 --output_name="my_lora"
 --save_model_as=safetensors
 --network_module=networks.lora
 --network_dim=16
 --network_alpha=1
 --learning_rate=1e-4
 --optimizer_type="AdamW8bit"
 --lr_scheduler="constant"
 --sdpa
 --max_train_epochs=10
 --save_every_n_epochs=1
 --mixed_precision="fp16"
 --gradient_checkpointing
"""
LOKR = """
accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 sdxl_train_network.py
    --pretrained_model_name_or_path {model}
    --dataset_config {toml}
    --mixed_precision bf16 --fp8_base
    --optimizer_type adamw8bit --learning_rate 2e-4 --gradient_checkpointing
    --network_module networks.lokr --network_dim 32 --network_alpha 16
    --max_train_epochs 16 --save_every_n_epochs 1
    --output_dir {output} --output_name my-lokr
"""
KAGGLE = """
accelerate launch sdxl_train_network.py --pretrained_model_name_or_path={model}
 --train_data_dir={train} --output_dir={output} --output_name=fablegh
 --resolution=768,768 --enable_bucket --network_module=networks.lora --network_dim=16 --network_alpha=8
 --train_batch_size=1 --max_train_epochs=8 --learning_rate=1e-4 --optimizer_type=AdamW8bit
 --mixed_precision=fp16 --save_precision=fp16 --gradient_checkpointing --lowram --cache_latents --cache_latents_to_disk
 --max_data_loader_n_workers=1 --save_every_n_epochs=8
 --sample_every_n_epochs=2 --sample_prompts={prompts} --sample_sampler=euler_a
 --logging_dir={logs} --log_with=tensorboard
"""
DATASET = """
[general]
enable_bucket = true
caption_extension = '.txt'

[[datasets]]
resolution = 64
batch_size = 2
bucket_reso_steps = 16
min_bucket_reso = 32
max_bucket_reso = 128

  [[datasets.subsets]]
  image_dir = '{folder}'
  num_repeats = 2
"""
COMMANDS = {  # the command, the family it is for, and the file that it leaves
    "docs/train_network.md": (DOCUMENTATION_2026, "sd1", "my_lora"),
    "docs/train_network_README-zh.md": (README_2023, "sd1", "it"),
    "train_network_README-ja.md of January 2023": (DREAMBOOTH, "sd1", "mytag"),
    "docs/loha_lokr.md": (LOKR, "sdxl", "my-lokr"),
    "a guide for Kaggle": (KAGGLE, "sdxl", "fablegh"),
}
# So that a CPU does it within seconds: two steps of images of the tiny models' size, and no previews.
SMALL = [
    "--max_train_steps=2",
    "--resolution=64",
    "--bucket_reso_steps=16",
    "--sample_every_n_epochs=0",
    "--device=cpu",
]


@pytest.mark.slow("trains")
@pytest.mark.parametrize("source", COMMANDS)
def test_a_command_of_the_documentation_trains(source, tiny_model, small_set, tmp_path, capsys):
    command, family, name = COMMANDS[source]
    train, reg = small_set
    (tmp_path / "set.toml").write_text(DATASET.format(folder=train / "2_mytag"), encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("mytag, a cat --w 64 --h 64 --d 42 --s 2", encoding="utf-8")
    places = dict(
        model=tiny_model(family), train=train, reg=reg, output=tmp_path / "out", toml=tmp_path / "set.toml",
        prompts=tmp_path / "prompts.txt", logs=tmp_path / "logs",
    )  # fmt: skip
    words = shlex.split(command.format(**places))
    flags = words[next(n for n, word in enumerate(words) if word.endswith("train_network.py")) + 1 :]
    capsys.readouterr()
    assert train_network.main([*flags, *SMALL]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    path = tmp_path / "out" / f"{name}.safetensors"
    assert all(tensor.isfinite().all() for tensor in load_file(path).values())
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_steps"] == "2"
    recorded = "learning_rate|network_dim|network_alpha|clip_skip|lr_scheduler"
    for flag, value in re.findall(rf"--({recorded})[ =]\"?([\w.-]+)", command):
        assert metadata[f"ss_{flag}"] in (value, str(float(value)) if value[0].isdigit() else value)
