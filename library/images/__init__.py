"""Cleaning raw images: what is the same, what is poor, what does not belong in it, and which size it should have.

Every file takes images as arrays and gives numbers, regions or arrays: reading, writing and deciding are the work of
tools/prepare_images.py, but for `manifest`, which knows what was made of what. To add a kind of cleaning: a file with
such functions, an option of PrepareImages in `tool_config`, and a step to `clean` in library/tooling/cleaning.py.
OpenCV is imported inside functions: the checks must not wait for it.
"""
