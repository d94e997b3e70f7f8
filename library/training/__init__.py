"""Where the parts meet: everything of a run but its loop, which stands in train_network.py."""
