"""The parts of the trainer; `train_network.py` and `tools/` put them together.

Set before anything imports them: the libraries below us stay offline, and do not speak of what does not concern a user
(such as torchvision, which nothing here needs). What is set in the environment already is left alone.
"""

import os

from library import start

start.prepare()

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("FOR_DISABLE_CONSOLE_CTRL_HANDLER", "1")  # Windows, conda: MKL's runtime would end us at Ctrl-C
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
