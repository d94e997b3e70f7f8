"""Files that hold more than a list of values: what in them are parameters of the run, and what describes data sets.

    [general] [[datasets]] [training] ...          data sets of sd-scripts beside parameters
    [[subsets]] [network_args.args] ...            LoRA_Easy_Training_Scripts: values in tables of tables

Such a file is its own `dataset_config`: `config_files` reads the parameters, `data.dataset_config` the data sets. To
take another layout: a branch in both functions.
"""

from typing import Any

from library.options import sd_scripts
from library.options.declaration import Values
from library.options.training import OPTIONS
from library.options.window_presets import ZERO_MEANT

OF_SETS_ALONE = ("num_repeats", "custom_attributes")  # of [general], what no parameter of the run is called
OF_RUNS = {  # by one of these a file of parameters is known
    "pretrained_model_name_or_path", "output_dir", "output_name", "network_module", "network_dim", "learning_rate",
    "optimizer_type", "max_train_epochs", "max_train_steps",
}  # fmt: skip
LISTS = ("network_args", "optimizer_args", "lr_scheduler_args")  # tables there, name=value here


def describes_data_sets(tables: Values) -> bool:
    """Whether a file's tables describe data sets, alone or beside parameters."""
    tables = _by_window(tables)
    return any(isinstance(tables.get(key), list) for key in ("datasets", "subsets"))


def parameters(tables: Values) -> Values:
    """The parameters of the run by name; sections are only headings, as in sd-scripts."""
    tables = _by_window(tables)
    if _is_of_easy_scripts(tables):
        return _easy_parameters(tables)
    values: Values = {}
    for key, value in tables.items():
        if key == "datasets" and isinstance(value, list):
            continue
        values |= value if isinstance(value, dict) and key not in OPTIONS else {key: value}
    return {name: value for name, value in values.items() if not (name in OF_SETS_ALONE and "datasets" in tables)}


def data_sets(tables: Values) -> Values:
    """What describes data sets, as [general] and [[datasets]]; all of a file that holds no parameters of a run.

    The tables of subsets are those that were given, so that the place of each is still known.
    """
    if _is_of_easy_scripts(tables := _by_window(tables)):
        subsets = found if isinstance(found := tables.get("subsets"), list) else []
        general = {
            name: value
            for table in tables.values()
            for name, value in _table(_table(table).get("dataset_args")).items()
            if _is_given(value)
        }
        for subset in filter(None, map(_table, subsets)):
            for name in [name for name, value in subset.items() if name == "name" or not _is_given(value)]:
                del subset[name]
        return {"general": general, "datasets": [{"subsets": subsets}]}
    own = {key: value for key, value in tables.items() if key in ("general", "datasets")}
    rest = {key: value for key, value in tables.items() if key not in own}
    general = own.get("general")
    if not is_configuration(rest) and "pretrained_model_name_or_path" not in _table(general):
        return tables  # nothing that only a run has: whatever else stands there is a mistake
    if isinstance(general, dict):
        own["general"] = {name: value for name, value in general.items() if name in OF_SETS_ALONE}
    return own


def is_configuration(tables: Values) -> bool:
    """Whether there is a parameter that only a run has."""
    return bool(OF_RUNS & {sd_scripts.RENAMED.get(name, name) for name in parameters(tables)})


def _table(value: object) -> Values:
    return value if isinstance(value, dict) else {}


def _by_window(tables: Values) -> Values:
    """What LoRA_Easy_Training_Scripts sends to its trainer ("args", "dataset") in the layout of what it saves."""
    args, sets = tables.get("args"), tables.get("dataset")
    if not isinstance(args, dict) or not isinstance(sets, dict):
        if isinstance(sets, dict) and isinstance(
            sets.get("subsets"), list
        ):  # [[dataset.subsets]] of people's own files
            return tables | {
                "dataset": {key: sets[key] for key in sets if key != "subsets"},
                "subsets": sets["subsets"],
            }
        return tables
    parts = [part for part in args.keys() | sets.keys() if part != "subsets"]
    saved = {part: {"args": args.get(part), "dataset_args": sets.get(part)} for part in sorted(parts)}
    return {**saved, "subsets": sets.get("subsets", [])}


def _is_of_easy_scripts(tables: Values) -> bool:
    return isinstance(tables.get("subsets"), list) or any(
        isinstance(_table(table).get(key), dict) for table in tables.values() for key in ("args", "dataset_args")
    )


def _is_given(value: Any) -> bool:
    """A window that has no empty fields leaves out what is 0 or ""; False stays, because not every default is that."""
    return value is False or bool(value)


def _easy_parameters(tables: Values) -> Values:
    values: Values = {}
    for key, table in tables.items():
        if isinstance(table, dict):
            values |= _table(table.get("args")) if {"args", "dataset_args"} & table.keys() else table
        elif key != "subsets":
            values[key] = table
    network = values.get("network_args")
    names = network if isinstance(network, dict) else {}
    module = "lycoris.kohya" if "algo" in names else "networks.dylora" if "unit" in names else "networks.lora"
    values.setdefault("network_module", "networks.lora_fa" if values.pop("fa", False) else module)
    for name in LISTS:
        if isinstance(pairs := values.get(name), dict):
            values[name] = [f"{one}={_text(value)}" for one, value in pairs.items() if _is_given(value)]
    empty = {name for name, value in values.items() if not _is_given(value)}
    return {
        name: ZERO_MEANT.get(name) if name in empty else value
        for name, value in values.items()
        if name not in empty or name in ZERO_MEANT
    }


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
