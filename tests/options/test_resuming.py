"""What may be set otherwise when a run goes on, and what states of earlier versions hold."""

import dataclasses

from library.options.resuming import differences
from library.options.training import Config

EARLIER = {"xformers": False, "use_8bit_adam": False, "v2": False}  # options of earlier versions, as delivered then


def state_of(config: Config, **earlier) -> dict:
    return dataclasses.asdict(config) | EARLIER | earlier


def test_nothing_is_said_where_nothing_has_changed():
    assert differences(state_of(Config()), Config()) == []
    assert differences(state_of(Config(), xformers=True, v2=True), Config()) == []


def test_an_earlier_name_counts_as_what_it_is_now():
    now = Config(optimizer_type="AdamW8bit")
    assert differences(state_of(Config(), use_8bit_adam=True), now) == []
    (line,) = differences(state_of(Config(), use_8bit_adam=True), Config())
    assert line.startswith("optimizer_type was 'AdamW8bit' when the state was saved, and is 'AdamW' now")


def test_what_changes_the_result_is_told_and_where_things_lie_is_not():
    now = Config(network_dim=8, output_dir="elsewhere", save_state=True)
    (line,) = differences(state_of(Config()), now)
    assert line.startswith("network_dim was 32 when the state was saved, and is 8 now")
