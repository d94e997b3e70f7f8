"""Claims about training, measured on the miniature instead of believed. Each file is one claim, and a program:

    python -m tests.laboratory.white_areas

prints its figures; what follows from them stands in docs/log.md. No test of the suite runs them: they take minutes.
"""
