"""Optimizers, learning rate schedules, averages of the weights."""
