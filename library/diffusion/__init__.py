"""Noise, timesteps, losses, validation and sampling."""
