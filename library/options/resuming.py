"""What may be set otherwise when a run goes on from its training state."""

import dataclasses

from library.messages import say
from library.options import sd_scripts
from library.options.declaration import Values
from library.options.training import OPTIONS, Config

MAY_CHANGE = {  # between saving a training state and going on from it: where things lie and what is shown
    "resume", "output_dir", "output_name", "logging_dir", "language", "cache_dir", "save_state", "training_comment",
    "max_data_loader_n_workers", "cache_latents_to_disk", "sample_prompts", "sample_every_n_epochs",
    "sample_every_n_steps", "sample_at_first", "sample_sampler", "tag_occurrence_txt_file", "save_last_n_epochs",
    "save_every_n_epochs", "save_every_n_steps", "save_n_epoch_ratio",
    "gradient_checkpointing", "lowram", "machine_rank", "main_process_ip", "main_process_port", "ddp_timeout",
    "validation_data_dir", "validate_every_n_epochs", "validate_every_n_steps", "max_validation_steps",
    "vae_batch_size", "save_last_n_epochs_state", "save_last_n_steps", "save_last_n_steps_state",
    "save_state_on_train_end", "keep_best", "early_stop", "log_with", "log_prefix", "log_tracker_name",
    "log_tracker_config", "log_config",
    "wandb_run_name", "wandb_api_key", "console_log_level", "console_log_file", "console_log_simple",
    *(name for name in OPTIONS if name.startswith("metadata_")),
}  # fmt: skip

OF_THE_BEGINNING = {"network_weights", "initial_step", "initial_epoch", "skip_until_initial_step"}


def todays(before: Values) -> Values:
    """The configuration that a state holds, perhaps of an earlier version, under the names of today."""
    return sd_scripts.translate(before, {}).values


def differences(before: Values, config: Config) -> list[str]:
    """What was set otherwise when a training state was saved and changes the result of going on; one line each.

    Args:
        before: the state's configuration, perhaps of an earlier version, under the names of then.
    """
    before = todays(before)
    changed = [
        (name, before[name], now)
        for name, now in dataclasses.asdict(config).items()
        if name in before and before[name] != now and name not in MAY_CHANGE
    ]
    return [
        say(
            f"{name} was {then!r} when the state was saved, and is {now!r} now",
            f"保存状态时 {name} 为 {then!r}，现在为 {now!r}",
        )
        + (_not_used() if name in OF_THE_BEGINNING else "")
        for name, then, now in changed
    ]


def _not_used() -> str:
    return say(" (not used: the training state takes its place)", "（不起作用：以训练状态为准）")
