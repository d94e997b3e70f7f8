"""What follows from several options together: each rule once, for whoever needs it."""

from library.options.training import Config


def trains_denoiser(config: Config) -> bool:
    return config.unet_lr != 0 and not config.network_train_text_encoder_only


def trains_text_encoder(config: Config) -> bool:
    return config.text_encoder_lr not in (0, [0, 0]) and not config.network_train_unet_only


def last_strengths(config: Config) -> list[float]:
    """Strengths of the LoRA at which the last previews are drawn, in order."""
    wanted = [0.5] if config.sample_strengths is None else config.sample_strengths
    return sorted({0.0, 1.0, *wanted})


def has_dropout(config: Config) -> bool:
    """Whether the network draws random numbers in its forward pass."""
    return bool(config.network_dropout or config.rank_dropout or config.module_dropout)


def changes_images(config: Config) -> bool:
    """Whether an image is another at every use, so that its latents cannot be kept."""
    return bool(config.random_crop or config.color_aug or config.face_crop_aug_range)
