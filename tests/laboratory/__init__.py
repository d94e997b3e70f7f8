"""Claims about training, measured on the miniature instead of believed.

    python -m tests.laboratory [--claims white_areas,...] [--seeds 2] [--processes 2] [--keep FOLDER]

tries each claim of the user's text against its opposite, prints a table and writes docs/laboratory.md with an image
for each. It takes minutes for each claim, so no test of the suite runs it. How a claim is written: `experiment.py`.
"""

CLAIMS = (  # files of this folder, in the order of the user's text
    "deleted_tags",
    "forgotten_tag",
    "white_areas",
    "two_loras",
    "face_cutouts",
    "regularization",
    "overfitting",
    "rank_and_alpha",
    "learning_rates",
    "which_epoch",
    "caption_mismatch",
    "peer",
)
