"""The device: what it is, what fits into it, how it computes."""
