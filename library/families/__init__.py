"""Lines of base models: what a checkpoint is, and how to load it."""
