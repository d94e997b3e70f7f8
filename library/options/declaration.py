"""How an option is declared: once, as a field of a frozen dataclass; and what is read from such a class.

    max_train_steps: int | None = option("often", None, minimum=1, english="number of steps", chinese="训练步数")

The flag of `train_network.py`, its help, the check of its value, the line in the parameter block and the row in
docs/parameters.md all come from this. The training's options stand in `training`, those of the scripts in `tools`.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

PROJECT = Path(__file__).resolve().parents[2]

Scalar = bool | int | float | str
Value = Scalar | list[Any] | None  # of an option, once checked; a list holds ints, floats or strings, see Option.item
Values = dict[str, Any]  # by name, as a person wrote them: anything Python, JSON or TOML can hold, until checked
Where = dict[str, str]  # name -> where its value was given: "lora_train_command_line.py:41", "x.toml:3" or "--flag"


if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


class Given(NamedTuple):
    """Values as a person gave them, under their present names."""

    values: Values
    where: Where
    notices: list[str]  # a line for each thing the person should know
    problems: list[str]  # what is wrong already; `checks.check` tells it with what it finds itself


@dataclass(frozen=True)
class Option:
    """One option as declared, see `option`."""

    name: str
    default: Any  # of the type of its field
    kinds: frozenset[type]  # {float, NoneType} of `float | None`; a list counts as `list`
    item: type | None  # of an option that is a list: what is in it

    group: str
    english: str
    chinese: str
    minimum: float | None
    maximum: float | None
    above: float | None
    choices: tuple[Scalar, ...] | None
    path: str | None
    in_block: bool
    is_flag: bool
    is_secret: bool
    delivered: Value
    shared: str | tuple[str, ...] | None

    @property
    def in_script(self) -> Any:  # of the type of its field, or "auto"
        """What the delivered block says; see `option`."""
        return None if self.shared else self.default if self.delivered is None else self.delivered


@dataclass(frozen=True)
class Declared(Generic[Settings]):
    """The options of a class whose fields are `option`s: what a block shows, and what values are checked against."""

    config: type[Settings]
    title: str  # the first lines of the script that shows them
    groups: dict[str, tuple[str, str]]  # key -> heading in English and Chinese, in the block's order
    options: dict[str, Option]

    def of_group(self, group: str) -> list[Option]:
        """The options of a group, in their order."""
        return [option for option in self.options.values() if option.group == group]


AnyDeclared = Declared[Any]  # of whichever script


def option(
    group: str,
    default: Value | tuple[Scalar, ...],
    *,
    english: str,
    chinese: str,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: tuple[Scalar, ...] | None = None,
    path: str | None = None,
    in_block: bool = True,
    is_flag: bool = True,
    is_secret: bool = False,
    delivered: Value = None,
    shared: str | tuple[str, ...] | None = None,
) -> Any:  # as dataclasses.field: the annotation beside it says the type
    """Declare one option.

    Args:
        group: a key of the class's groups.
        default: also says which values are "not given".
        english, chinese: meaning, usual range and cost, in one line each; both say the same.
        minimum, maximum: limits, both allowed values.
        above: a limit that is not itself allowed.
        choices: the only values, where they can be listed.
        path: "file", "folder" (must exist), "model" (file or folder, must exist), "image" (file, or a data URL),
            "prompts" (file, or the text itself), "output" (a folder, will be made) or "new file".
        in_block: whether the parameter block shows it; rare options are flags only.
        is_flag: whether `train_network.py` takes it; what only the parameter block needs is not a flag.
        is_secret: a key or password: in no file that is written, and in no command that is printed.
        delivered: what the delivered block says where that is not the default: a command has no delivered block.
        shared: of a script in tools/: the block says None, which stands for this value of
            lora_train_command_line.py: an option's name, or "{output_dir}/train"; of a list, a tuple. See `shared`.
    """
    metadata = {name: value for name, value in locals().items() if name != "default"}
    return field(default=default, metadata=metadata)


def declared(config: type[Settings], title: str, groups: dict[str, tuple[str, str]]) -> Declared[Settings]:
    """Read the fields of a dataclass."""
    types = get_type_hints(config)
    options = {}
    for one in dataclasses.fields(config):
        annotation = types[one.name]
        parts = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
        item = next((get_args(part)[0] for part in parts if get_origin(part) is list), None)
        kinds = frozenset(get_origin(part) or part for part in parts)
        options[one.name] = Option(one.name, one.default, kinds, item, **one.metadata)
    return Declared(config, title, groups, options)
