"""What the windows of kohya_ss and of lora-scripts (SD-Trainer) keep in a way of their own, as plain values.

Their presets hold flags in a text, values that count only where another value says so, and several values that are one
of ours. `sd_scripts` then gives the names that are left their present form.
"""

import shlex
import tomllib
from collections.abc import Iterable
from typing import Any

from library.messages import say
from library.options.checks import as_number, asks, from_text, no_effect, place
from library.options.declaration import Given, Values
from library.options.training import OPTIONS

PROMPT_PARTS = {  # lora-scripts' settings of a preview -> sd-scripts' letters
    "negative_prompts": "n", "sample_width": "w", "sample_height": "h", "sample_cfg": "l", "sample_steps": "s",
    "sample_seed": "d",
}  # fmt: skip
PREVIEW = ("prompt_file", "positive_prompts", *PROMPT_PARTS)

SWITCHED_BY = {  # lora-scripts: a switch -> values that count only where it is on
    "enable_block_weights": ("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold"),
    "enable_base_weight": ("base_weights", "base_weights_multiplier"),
    "enable_preview": (*PREVIEW, "sample_prompts", "sample_every_n_epochs"),
}

# What a 0 of kohya_ss's window stands for: it is no number there but "not given", and sd-scripts takes its default.
# Of others (a file every 0 epochs, 0 images held out) ours is the same.
ZERO_MEANT: Values = {
    "seed": None, "network_dim": 4, "network_alpha": 1, "prior_loss_weight": 1.0, "max_grad_norm": 1.0,
    "lr_scheduler_power": 1.0, "lr_scheduler_num_cycles": 1, "max_timestep": 1000, "max_token_length": 75,
    "huber_c": 0.1, "multires_noise_discount": 0.3, "gradient_accumulation_steps": 1, "train_batch_size": 1,
    "bucket_reso_steps": 64, "min_bucket_reso": 256, "max_bucket_reso": 1024, "clip_skip": None,
}  # fmt: skip

# What LoRA_type "Standard" and kohya's own LoCon do not read: it is for LyCORIS.
OF_LYCORIS = (
    "bypass_mode", "dora_wd", "use_cp", "use_tucker", "use_scalar", "rank_dropout_scale", "constrain", "rescaled",
    "train_norm", "decompose_both",
)  # fmt: skip
SAYS_NOTHING = {"dynamo_backend": "no", "dynamo_mode": "default", "LyCORIS_preset": "full", "xformers": "sdpa"}


def unfold(given: Given) -> None:
    """Make plain values of everything that a window keeps in its own way."""
    _read_texts_of_flags(given)
    for name in ("optimizer_args", "lr_scheduler_args", "network_args"):
        if isinstance(text := given.values.get(name), str):
            given.values[name] = shlex.split(text) if '"' in text and text.count('"') % 2 == 0 else text.split()
    _drop_what_is_switched_off(given.values)
    if "LoRA_type" in given.values:  # kohya_ss
        fill_zeros(given)
    _choose_by_network(given)
    _join_parts(given)
    _choose_noise(given)
    _choose_length(given)
    for name, usual in SAYS_NOTHING.items():
        if str(given.values.get(name)).lower() == usual:
            del given.values[name]
    if str(given.values.get("max_token_length")) == "255":  # what lora-scripts writes for 225
        given.values["max_token_length"] = 225


def _read_texts_of_flags(given: Given) -> None:
    """Values of a text field for further flags (kohya_ss) or further TOML (lora-scripts)."""
    for name, read in (("additional_parameters", _flags_of), ("ui_custom_params", tomllib.loads)):
        text = given.values.pop(name, None)
        if not text:
            continue
        try:
            more = read(str(text))
        except ValueError as error:
            at = place(name, given.where)
            given.problems.append(
                say(
                    f"{at}: cannot be read ({error}). Write its values as separate parameters",
                    f"{at}：无法读取（{error}）。请把其中的值写成单独的参数",
                )
            )
            continue
        given.values.update(more)
        given.where.update(dict.fromkeys(more, given.where.get(name, "")))


def _flags_of(text: str) -> Values:
    """The values of flags in a text, as a shell would divide it. Raises ValueError."""
    flags: dict[str, list[str]] = {}
    name = None
    for word in shlex.split(text):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            flags[name] = [value] if equals else []
        elif name is None:
            raise ValueError(say(f'"{word}" comes before the first --flag', f'"{word}" 前面没有 --参数名'))
        else:
            flags[name].append(word)
    return {name: _value_of_words(name, words) for name, words in flags.items()}


def _value_of_words(name: str, words: list[str]) -> Any:
    if not words:
        return True
    is_known = name in OPTIONS
    if len(words) > 1 or (is_known and list in OPTIONS[name].kinds):
        return words
    return from_text(name, words[0]) if is_known else words[0]


def _drop_what_is_switched_off(values: Values) -> None:
    for switch, names in SWITCHED_BY.items():
        if switch in values and not asks(values[switch]):
            _drop(values, names)
        values.pop(switch, None)


def fill_zeros(given: Given) -> None:
    """Windows that have no empty field: 0 for what was not given, as ZERO_MEANT; and two rates of 0: learning_rate."""
    values = given.values
    zeros = [name for name, value in values.items() if not isinstance(value, bool) and as_number(str(value)) == 0]
    rates = {"unet_lr", "text_encoder_lr"}
    empty = [name for name in zeros if name in ZERO_MEANT or (name in rates and rates <= set(zeros))]
    if "learning_rate" in zeros and rates & values.keys() - empty:
        empty.append("learning_rate")  # each part has its own
    _drop(values, empty)
    values |= {name: ZERO_MEANT[name] for name in empty if name in ZERO_MEANT}
    if said := [name for name in empty if name != "multires_noise_discount"]:  # 0 as delivered there, and mostly idle
        given.notices.append(_zero_is_no_number(said, given))
    if values.get("lr_scheduler") == "cosine_with_restarts" and asks(values.get("epoch")):
        values.setdefault("lr_scheduler_num_cycles", values["epoch"])  # an empty field: one cycle an epoch


def _join_parts(given: Given) -> None:
    """lora-scripts: several values that are one of ours."""
    values = given.values

    def put(name: str, value: object, old: str) -> None:
        values[name], given.where[name] = value, given.where.get(old, "")

    for name in ("base_weights", "base_weights_multiplier"):
        if isinstance(values.get(name), str):
            values[name] = [line.strip() for line in values[name].splitlines() if line.strip()]
    if asks(values.get("prompt_file")):
        put("sample_prompts", values["prompt_file"], "prompt_file")
    elif asks(values.get("positive_prompts")):
        parts = [f"--{letter} {values[name]}" for name, letter in PROMPT_PARTS.items() if asks(values.get(name))]
        prompt = str(values["positive_prompts"]).replace("\n", " ")
        put("sample_prompts", " ".join([prompt, *parts]), "positive_prompts")
    _drop(values, PREVIEW)
    of_network = {"lycoris_algo": "algo", "algo": "algo", "lokr_factor": "factor"}
    if "lycoris_algo" in values or "algo" in values:
        of_network |= {"conv_dim": "conv_dim", "conv_alpha": "conv_alpha"}
    for ours, custom, single in (
        ("optimizer_args", "optimizer_args_custom", {"prodigy_d0": "d0", "prodigy_d_coef": "d_coef"}),
        ("network_args", "network_args_custom", of_network),
    ):
        names = [custom, *single]
        if not any(name in values for name in names if name not in OPTIONS):
            continue
        arguments = [item for name in (ours, custom) for item in _lines(values.get(name))]
        arguments += [f"{argument}={values[name]}" for name, argument in single.items() if asks(values.get(name))]
        first = next(name for name in names if name in values)
        _drop(values, names)
        if arguments:
            put(ours, arguments, first)
    if "text_encoder_lr1" in values or "text_encoder_lr2" in values:  # of SDXL's two
        rates = [values.pop(name, values.get("text_encoder_lr")) for name in ("text_encoder_lr1", "text_encoder_lr2")]
        put("text_encoder_lr", rates, "text_encoder_lr1")


def _lines(value: object) -> list[object]:
    """The items of a list, or of a text with one in each line."""
    if isinstance(value, str):
        return [*value.splitlines()]
    return [*value] if isinstance(value, (list, tuple)) else []


def _choose_noise(given: Given) -> None:
    """kohya_ss keeps the values of both kinds of noise, and which counts."""
    kind = str(given.values.pop("noise_offset_type", "")).lower()
    if kind == "original":
        _leave_out(given, ("multires_noise_iterations",), f'noise_offset_type = "{kind}"')
        _drop(given.values, ("multires_noise_discount",))
    elif kind == "multires":
        names = ("noise_offset", "adaptive_noise_scale", "noise_offset_random_strength")
        _leave_out(given, names, f'noise_offset_type = "{kind}"')


def _choose_length(given: Given) -> None:
    """kohya_ss keeps `epoch` beside what goes before it; -1 and 0 say "off" where a window has no empty field."""
    values = given.values
    if "epoch" in values:
        if asks(values.get("max_train_epochs")):
            _leave_out(given, ("epoch", "max_train_steps"), "max_train_epochs")
        elif asks(values.get("max_train_steps")):
            _leave_out(given, ("epoch", "max_train_epochs"), "max_train_steps")
        else:
            _drop(values, ("max_train_epochs", "max_train_steps"))
    if "lr_warmup" in values and "lr_warmup_steps" in values:
        idle = "lr_warmup" if asks(values["lr_warmup_steps"]) else "lr_warmup_steps"
        _leave_out(given, (idle,), "lr_warmup_steps")
    for name in ("sample_every_n_epochs", "sample_every_n_steps"):
        if isinstance(value := values.get(name), (int, float)) and value < 0:
            del values[name]  # sd-scripts: off
    if asks(values.get("sample_every_n_steps")) and not asks(values.get("sample_every_n_epochs")):
        _drop(values, ("sample_every_n_epochs",))  # off, and not "never" as ours
    names = ("stop_text_encoder_training_pct", "stop_text_encoder_training")
    if names[0] in values or "LoRA_type" in values:  # kohya_ss: a percentage
        percent = next((name for name in names if asks(values.get(name))), None)
        if percent:
            values[names[1]], given.where[names[1]] = f"{values[percent]}%", given.where.get(percent, "")
        _drop(values, names if percent is None else names[:1])


def _choose_by_network(given: Given) -> None:
    """What counts of the network's values, by its kind."""
    values = given.values
    kind = str(values.get("LoRA_type", "")).lower()
    if kind in ("standard", "kohya locon", "lora-fa"):
        idle = OF_LYCORIS if kind == "kohya locon" else (*OF_LYCORIS, "conv_dim", "conv_alpha")
        _leave_out(given, idle, f'LoRA_type = "{values["LoRA_type"]}"')
        _drop(values, ("factor", "unit"))  # never empty
    if "algo" in values and str(values.get("network_module")).lower() != "lycoris.kohya":  # train.sh of lora-scripts
        _drop(values, ("algo",))
        _leave_out(given, ("conv_dim", "conv_alpha", "dropout"), 'network_module = "networks.lora"')
    if asks(values.pop("dora_wd", None)):
        values["LoRA_type" if "LoRA_type" in values else "network_module"] = "dora"
    if values.get("factor") is not None:
        values["lokr_factor"], given.where["lokr_factor"] = values.pop("factor"), given.where.get("factor", "")
    if str(values.get("lokr_factor")) == "-1":
        values["lokr_factor"] = None


def _drop(values: Values, names: Iterable[str]) -> None:
    for name in names:
        values.pop(name, None)


def _leave_out(given: Given, names: tuple[str, ...], because: str) -> None:
    """Drop values, and say so of those that ask for something."""
    gone = [name for name in names if asks(given.values.get(name))]
    _drop(given.values, names)
    if gone:
        given.notices.append(no_effect(gone, (because, because), given.where))


# ---- what is said ----


def _zero_is_no_number(names: list[str], given: Given) -> str:
    listed = ", ".join([place(names[0], given.where), *names[1:]])
    return say(
        f"{listed}: 0 there means not given, as in the window that wrote this preset",
        f"{listed}：其中的 0 表示“不填”，与写出该预设的界面一致",
    )
