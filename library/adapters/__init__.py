"""Adapters: what is trained. The base model stays as it is; each targeted layer gets a small update of its own.

`attach` hooks them into a family's targets, `Adapters` is all of them together: its tensors carry the names of the
saved file. To add a kind: write its layer in a file of this package (see `layer.py`), and add a row to KINDS.
"""

import difflib
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor, nn

from library.adapters.dora import DoraLayer
from library.adapters.flat_parameters import FlatParameters
from library.adapters.layer import AdapterLayer
from library.adapters.loha import LohaLayer
from library.adapters.lokr import LokrLayer
from library.adapters.lora import LoraLayer
from library.adapters.sizes import LrScale, ParamGroup, Size, block_name, block_order, is_large
from library.contracts import Target
from library.messages import UserError, say

KINDS: dict[str, type[AdapterLayer]] = {"lora": LoraLayer, "loha": LohaLayer, "lokr": LokrLayer, "dora": DoraLayer}


def attach(
    targets: Iterable[Target],
    *,
    module: str = "lora",
    rank: int,
    alpha: float | None = None,
    conv_rank: int | None = None,
    conv_alpha: float | None = None,
    dropout: float = 0.0,
    rank_dropout: float = 0.0,
    module_dropout: float = 0.0,
    rank_stabilized: bool = False,
    factor: int | None = None,
    sizes: Mapping[str, Size] = MappingProxyType({}),
    faster: Collection[str] = (),
    seed: int = 0,
) -> "Adapters":
    """Hook an adapter into every target; nothing is changed yet, because each starts at zero.

    Args:
        targets: the layers and their names in the file; leave out the parts that are not to be trained.
        module: kind of adapter, a key of KINDS.
        rank, alpha: of linear layers and 1x1 convolutions; the update is scaled by alpha / rank. None or 0: rank.
        conv_rank, conv_alpha: the same for larger convolutions. None: targets that need it are left out.
        dropout, rank_dropout, module_dropout: shares in [0, 1); see `LoraLayer`, and `WholeLayer`, which knows no
            dropout of inner values.
        rank_stabilized: scale by alpha / sqrt(rank), so that a higher rank does not learn more slowly. Kalajdzievski
            2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", arXiv:2312.03732. The file's alpha is
            alpha * sqrt(rank), which by alpha / rank gives every reader the same strength.
        factor: of "lokr"; see `LokrLayer`.
        sizes: what layers have of their own, by name in the file; see `sizes.choose`.
        faster: parts of the model in which what LoRA+ lets learn faster is kept apart (Hayou et al. 2024, "LoRA+:
            Efficient Low Rank Adaptation of Large Models", arXiv:2402.12354).
        seed: same seed, same initial weights, whatever other random numbers were drawn.

    Raises:
        UserError: there is no such kind.
    """
    if module not in KINDS:
        raise UserError(_unknown_kind(module))
    kind = KINDS[module]
    build: Callable[..., AdapterLayer] = kind  # each kind has settings of its own
    settings = dict(rank_dropout=rank_dropout, module_dropout=module_dropout, seed=seed)
    settings |= dict(dropout=dropout) if kind.HAS_DROPOUT else {}
    settings |= dict(factor=factor) if kind is LokrLayer else {}
    layers: dict[str, AdapterLayer] = {}
    parts: dict[str, list[str]] = {}
    groups: dict[str, dict[Hashable, list[AdapterLayer]]] = {}  # part -> what is alike -> its layers
    for target in targets:
        own = sizes.get(target.saved_as, Size())
        if own.rank == 0 or (own.rank is None and target.needs_conv_dim and conv_rank is None):
            continue
        assert isinstance(target.layer, nn.Linear | nn.Conv2d), f"{target.saved_as}: cannot adapt {target.layer}"
        assert target.saved_as not in layers, f"{target.saved_as}: named twice"
        takes_conv = is_large(target) and bool(conv_rank or own.rank)
        own_rank = own.rank or (conv_rank if takes_conv and conv_rank else rank)
        usual_alpha = conv_alpha if takes_conv else alpha
        own_alpha = (usual_alpha if own.alpha is None else own.alpha) or own_rank
        if rank_stabilized:
            own_alpha *= math.sqrt(own_rank)
        layer = build(target.layer, own_rank, own_alpha, name=target.saved_as, **settings)
        layers[target.saved_as] = layer
        parts.setdefault(target.part, []).append(target.saved_as)
        alike = (target.shares_input, target.layer.weight.shape, layer.rank, layer.alpha, own.lr_scale)
        is_stacked = kind.can_stack and target.shares_input
        groups.setdefault(target.part, {}).setdefault(alike if is_stacked else target.saved_as, []).append(layer)
    flat_parameters = {}
    for part, of_part in groups.items():
        lr_scales = {layers[name]: sizes.get(name, Size()).lr_scale for name in parts[part]}
        keeps_apart = part in faster

        def param_group_of(
            layer: AdapterLayer,
            attribute: str,
            part: str = part,
            lr_scales: dict[AdapterLayer, LrScale] = lr_scales,
            apart: bool = keeps_apart,
        ) -> ParamGroup:
            return ParamGroup(part, lr_scales[layer], apart and attribute == layer.PLUS)

        flat_parameters[part] = FlatParameters(list(of_part.values()), param_group_of)
    return Adapters(layers, parts, flat_parameters, rank_stabilized=rank_stabilized)


class Adapters:
    """All adapters of a model together.

    Args:
        layers: name in the file -> adapter, in the order of the file.
        parts: "text_encoder", "denoiser", ... -> names of their layers.
        flat_parameters: the same parts -> the memory of their layers.
        rank_stabilized: the layers' alphas are sqrt(rank) times what was asked for.
    """

    def __init__(
        self,
        layers: dict[str, AdapterLayer],
        parts: dict[str, list[str]],
        flat_parameters: dict[str, FlatParameters],
        *,
        rank_stabilized: bool = False,
    ):
        self.rank_stabilized = rank_stabilized
        self.layers = layers
        self.flat_parameters = flat_parameters
        self._names_of = parts
        self.frozen: set[str] = set()  # parts that are no longer trained: the optimizer leaves what has no gradient
        self._single: dict[nn.Parameter, tuple[FlatParameters, Tensor]] = {}  # see `parts`

    def param_groups(self, *, is_flat: bool = True) -> dict[ParamGroup, list[nn.Parameter]]:
        """What the optimizer is to change, float32, by the rate at which it learns: usually a group for each part.

        Args:
            is_flat: one tensor for all layers of a group. False: each layer's tensors, such as `down` and `up`, in
                the order of the targets, for optimizers that look at shapes.
        """
        found: dict[ParamGroup, list[nn.Parameter]] = {}
        for part, flat in self.flat_parameters.items():
            for group, place in flat.param_groups.items():
                is_whole = len(flat.param_groups) == 1
                found[group] = []
                if is_flat:
                    found[group].append(flat.master if is_whole else self._own(flat, flat.master.detach()[place]))
            for layer in () if is_flat else (self.layers[name] for name in self._names_of[part]):
                for attribute, view in zip(layer.attributes, layer.masters(), strict=True):
                    found[flat.param_group_of(layer, attribute)].append(self._own(flat, view))
        return found

    def parts(self, *, is_flat: bool = True) -> dict[str, list[nn.Parameter]]:
        """The same by part of the model; see `param_groups`."""
        found: dict[str, list[nn.Parameter]] = {}
        for group, parameters in self.param_groups(is_flat=is_flat).items():
            found.setdefault(group.part, []).extend(parameters)
        return found

    def _own(self, flat: FlatParameters, view: Tensor) -> nn.Parameter:
        parameter = nn.Parameter(view)
        self._single[parameter] = (flat, view)
        return parameter

    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained, float32, one flat tensor for each part; not what is frozen."""
        return [flat.master for part, flat in self.flat_parameters.items() if part not in self.frozen]

    def gather(self) -> None:
        """After each backward pass: its gradients go to what the optimizer changes, in float32."""
        for part, flat in self.flat_parameters.items():
            if part not in self.frozen:
                flat.gather()
        for parameter, (flat, view) in self._single.items():
            gradient = flat.master.grad  # None: frozen
            if gradient is not None:
                parameter.grad = gradient.as_strided(view.shape, view.stride(), view.storage_offset())

    @torch.no_grad()
    def refresh(self) -> None:
        """After each step of the optimizer: what it changed is seen by the model, and the gradients are forgotten."""
        for flat in self.flat_parameters.values():
            flat.refresh()
            flat.clear()
        for parameter in self._single:
            parameter.grad = None

    @property
    def multiplier(self) -> float:
        """Strength at which the update is applied: 1 in training, 0 shows the base model exactly."""
        return next((layer.multiplier for layer in self.layers.values()), 1.0)

    @multiplier.setter
    def multiplier(self, strength: float) -> None:
        for layer in self.layers.values():
            layer.multiplier = strength

    def state_dict(self) -> dict[str, Tensor]:
        """The file's tensors under the file's names; float32, not copied: the next step changes them."""
        tensors = {}
        for name, layer in self.layers.items():
            tensors |= {f"{name}.{ending}": tensor for ending, tensor in layer.file_tensors().items()}
            tensors[f"{name}.alpha"] = torch.tensor(layer.alpha)
        return tensors

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take over the tensors of a file; all or none.

        Raises:
            UserError: the file's layers, ranks or alphas are not those of this run; says which, and what to set.
        """
        self.refuse_others(tensors)
        for name, layer in self.layers.items():
            for ending, master in layer.file_tensors().items():
                master.copy_(tensors[f"{name}.{ending}"])
        for flat in self.flat_parameters.values():
            flat.refresh()

    def refuse_others(self, tensors: dict[str, Tensor]) -> None:
        """Raise `load_state_dict`'s UserError where it would; no weights are needed for that."""
        problems = _missing_and_unexpected(self, tensors) or _mismatches(self, tensors)
        if problems:
            raise UserError(problems, say("the LoRA does not fit this run:", "该 LoRA 与本次训练的设置不符："))

    def limit_norms(self, maximum: float) -> Tensor:
        """Shrink each layer's update whose norm is larger than `maximum`.

        Returns:
            () how many were; on the device: reading it stalls the step.
        """
        count = torch.stack([layer.limit_norm(maximum) for layer in self.layers.values()]).sum()
        for flat in self.flat_parameters.values():
            flat.refresh()
        return count

    def norms(self) -> dict[str, float]:
        """What was learned in each part: the Frobenius norm of all its updates together."""
        return {
            part: float(torch.stack([self.layers[name].norm() for name in names]).norm())
            for part, names in self._names_of.items()
        }

    def block_norms(self) -> dict[str, float]:
        """What was learned in each block, by its `sizes.block_name`, in their order; waits for the device once."""
        every = torch.stack([layer.norm() for layer in self.layers.values()]).tolist()
        blocks: dict[str, list[float]] = {}
        for name, norm in zip(self.layers, every, strict=True):
            blocks.setdefault(block_name(name), []).append(norm)
        return {name: math.hypot(*blocks[name]) for name in sorted(blocks, key=block_order)}

    def to(self, device: torch.device | str) -> Self:
        """Move the weights; what the optimizer holds in flat form stays the same objects."""
        assert not self._single, "an optimizer holds views of the old memory"
        for flat in self.flat_parameters.values():
            flat.to(device)
        return self

    def train(self, mode: bool = True) -> Self:
        """Dropout on (or off)."""
        for layer in self.layers.values():
            layer.train(mode)
        return self

    def eval(self) -> Self:
        """Dropout off."""
        return self.train(False)

    def detach_from_model(self) -> None:
        """Give every layer of the model its own `forward` back; the weights stay here."""
        for layer in self.layers.values():
            layer.detach_from_model()


def kind_of(names: Iterable[str]) -> str:
    """The kind of adapter, a key of KINDS, that a file with these names of tensors holds."""
    endings = {name.partition(".")[2] for name in names}
    marks = {"loha": "hada_w1_a", "lokr": "lokr_w1", "dora": "dora_scale"}
    return next((kind for kind, mark in marks.items() if mark in endings), "lora")


def _missing_and_unexpected(adapters: Adapters, tensors: dict[str, Tensor]) -> list[str]:
    expected = {name for name in adapters.state_dict() if not name.endswith(".alpha")}  # without alpha: alpha = rank
    given = {name for name in tensors if not name.endswith(".alpha")}
    kind, ours = kind_of(given), kind_of(expected)
    if kind != ours:
        return [
            say(
                f'it is a {kind} file, and this run trains a {ours}. Set network_module = "{kind}".',
                f'该文件是 {kind}，而本次训练的是 {ours}。请设 network_module = "{kind}"。',
            )
        ]
    problems = []
    missing, unexpected = sorted(expected - given), sorted(given - expected)
    if ours == "lokr" and (resized := [name for name in missing if f"{name.partition('.')[0]}.lokr_w1" in given]):
        return [
            say(
                f"{_some(resized)} not in the file: it was made with another network_dim, conv_dim or lokr_factor. Set "
                "them as its training had them.",
                f"文件中缺少 {_some(resized)}：它训练时的 network_dim、conv_dim 或 lokr_factor 不同，请设为相同的值。",
            )
        ]
    if missing:
        problems.append(_not_in_the_file(missing))
    if unexpected:
        problems.append(_only_in_the_file(unexpected))
    return problems


def _mismatches(adapters: Adapters, tensors: dict[str, Tensor]) -> list[str]:
    """One problem per cause, not one per layer: a wrong rank is wrong in all 264."""
    problems: dict[str, str] = {}
    for name, layer in adapters.layers.items():
        option = "conv_dim" if layer.kernel not in {(), (1, 1)} else "network_dim"
        given = {attribute: tensors[f"{name}.{layer.FILE_NAMES[attribute]}"] for attribute in layer.attributes}
        own = dict(zip(layer.attributes, layer.masters(), strict=True))
        ranks = {given[attribute].shape[axis] for attribute, axis in layer.RANK_AXIS.items() if attribute in given}
        rank = min(ranks, default=layer.rank)
        alpha = float(tensors.get(f"{name}.alpha", rank))
        is_same_layer = len(ranks) <= 1 and all(
            _without(given[attribute].shape, axis := layer.RANK_AXIS.get(attribute))
            == _without(own[attribute].shape, axis)
            for attribute in own
        )
        if not is_same_layer:
            shapes, ours = (", ".join(map(_shape, found.values())) for found in (given, own))
            cause = say(
                "The file was made for another kind of base model (SD 1.x, SD 2.x, SDXL): take one of the same kind.",
                "该文件对应另一类底模（SD 1.x、SD 2.x、SDXL），请换用同类的。",
            )
            if isinstance(layer, LokrLayer):
                cause = say(
                    "The file was made with another lokr_factor, or for another kind of base model.",
                    "该文件的 lokr_factor 不同，或对应另一类底模。",
                )
            problems.setdefault(
                "shape",
                say(
                    f"{name}: shapes {shapes} in the file, {ours} in this model. {cause}",
                    f"{name}：文件中形状为 {shapes}，本模型为 {ours}。{cause}",
                ),
            )
        elif rank != layer.rank and ranks:
            problems.setdefault(
                option,
                _other_rank(name, rank, layer.rank, option),
            )
        elif ranks and abs(alpha - layer.alpha) > 0.01 * abs(layer.alpha):  # the file may hold it in bfloat16: 3 digits
            other, setting = (
                option.replace("dim", "alpha"),
                alpha / (math.sqrt(rank) if adapters.rank_stabilized else 1),
            )
            problems.setdefault(
                other,
                _other_alpha(name, alpha, layer.alpha, other, setting),
            )
    return list(problems.values())


def _without(shape: torch.Size, axis: int | None) -> list[int]:
    return [size for place, size in enumerate(shape) if place != axis]


def _unknown_kind(module: str) -> str:
    near = difflib.get_close_matches(module, KINDS, 1)
    hint_en, hint_zh = (f" Did you mean {near[0]}?", f"是否想写 {near[0]}？") if near else ("", "")
    return say(
        f"network_module = {module}: there is no such kind of adapter.{hint_en} There are: {', '.join(KINDS)}.",
        f"network_module = {module}：没有这种网络。{hint_zh}可用：{'、'.join(KINDS)}。",
    )


def _some(names: list[str]) -> str:
    """The first few of many names, and how many there are."""
    if len(names) <= 2:
        return say(" and ".join(names) + (" is" if len(names) == 1 else " are"), "、".join(names))
    return say(
        f"{names[0]}, {names[1]}, ... ({len(names)} tensors) are", f"{names[0]}、{names[1]} 等 {len(names)} 个张量"
    )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def _not_in_the_file(names: list[str]) -> str:
    return say(
        f"{_some(names)} not in the file. If it was trained with fewer parts of the model, train the same: "
        "text_encoder_lr = 0 for one of the denoiser alone, conv_dim = None for one without convolutions.",
        f"文件中缺少 {_some(names)}。如果它训练的部分较少，请保持一致：只含去噪网络的设 text_encoder_lr = 0，"
        "不含卷积层的设 conv_dim = None。",
    )


def _only_in_the_file(names: list[str]) -> str:
    return say(
        f"{_some(names)} only in the file and would be lost. Train these parts too (text_encoder_lr, "
        "unet_lr, conv_dim), and check that the file was made for this kind of base model.",
        f"{_some(names)} 只在文件中有，继续训练会丢失。请同时训练这些部分"
        "（text_encoder_lr、unet_lr、conv_dim），并确认该文件对应同类底模。",
    )


def _other_rank(name: str, rank: int, ours: int, option: str) -> str:
    return say(
        f"{name}: rank {rank} in the file, {ours} in this run. Set {option} = {rank}, or "
        "dim_from_weights = True for every layer's own.",
        f"{name}：文件的秩为 {rank}，本次为 {ours}。请设 {option} = {rank}；若各层不同，请设 dim_from_weights = True。",
    )


def _other_alpha(name: str, alpha: float, ours: float, option: str, setting: float) -> str:
    return say(
        f"{name}: alpha {alpha:g} in the file, {ours:g} in this run: the update would change its "
        f"strength. Set {option} = {setting:g}.",
        f"{name}：文件的 alpha 为 {alpha:g}，本次为 {ours:g}，效果强度会改变。请设 {option} = {setting:g}。",
    )
