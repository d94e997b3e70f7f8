"""LoRA files of any trainer: read, merged, resized."""
