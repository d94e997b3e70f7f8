"""The parts of the trainer; `train_network.py` and `tools/` put them together."""
