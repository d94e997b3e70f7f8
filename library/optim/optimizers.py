"""Optimizers by name. To add one: add a row to OPTIMIZERS.

Packages beyond torch are imported only when asked for, so nobody needs them all.
"""

import ast
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import nn
from torch.optim import Optimizer

from library.messages import UserError, say

Group = dict[str, Any]  # "name", "params" and "lr"
Settings = dict[str, Any]  # an optimizer's own, by name
StateDict = dict[str, Any]  # what an optimizer's `state_dict()` gives: each has its own
OF_SCHEDULES = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")  # what they keep in a group


class Built(NamedTuple):
    """An optimizer, and what the user should know about it."""

    optimizer: Optimizer
    described_as: str  # "torch.optim.adamw.AdamW(weight_decay=0.1)": for ss_optimizer
    notices: list[str]  # where something else was done than was asked for


Row = Callable[[list[Group], float | None, Settings], Built]  # groups, a learning rate beside theirs, settings


def build(name: str, groups: list[Group], *, learning_rate: float | None, args: Settings | None = None) -> Built:
    """The optimizer of that name.

    Args:
        name: a key of OPTIMIZERS, in upper or lower case, or an import path "package.module.Class".
        groups: from `parameter_groups`; each has its own "lr".
        learning_rate: for optimizers that want one beside those of the groups.
        args: the optimizer's own settings, from `parse_args`.

    Raises:
        UserError: no such optimizer, no such setting, or a package is missing.
    """
    args = dict(args or {})
    if "." in name:
        return _plain(name)(groups, learning_rate, args)
    of_lower = {key.lower(): key for key in OPTIMIZERS}
    if name.lower() not in of_lower:
        near = [of_lower[key] for key in difflib.get_close_matches(name.lower(), of_lower, 2)]
        hint = say(f" Did you mean {' or '.join(near)}?", f"是否想写 {'、'.join(near)}？") if near else ""
        raise UserError(_no_such_optimizer(name, hint))
    return OPTIMIZERS[of_lower[name.lower()]](groups, learning_rate, args)


def is_shape_blind(name: str) -> bool:
    """Whether an optimizer does the same to one flat tensor as to many: it looks at numbers and sums, not at shapes."""
    return name.lower() in {known.lower() for known in OPTIMIZERS if known != "Adafactor"}


STATE_BYTES = {
    "adamw8bit": 2, "pagedadamw8bit": 2, "lion": 4, "lion8bit": 1, "pagedlion8bit": 1, "prodigy": 16, "sgd": 0,
    "sgdnesterov": 4, "sgdnesterov8bit": 1, "adafactor": 1, "dadaptation": 12, "dadaptadampreprint": 12,
    "dadaptadam": 12, "dadaptadan": 16, "dadaptadanip": 16, "dadaptadagrad": 12, "dadaptlion": 8, "dadaptsgd": 12,
}  # fmt: skip


def state_bytes(name: str) -> int:
    """What an optimizer remembers of each number, in bytes; two float32 where nothing else is known."""
    return STATE_BYTES.get(name.lower(), 8)


def parse_args(lines: Iterable[str] | None, option: str = "optimizer_args") -> Settings:
    """["weight_decay=0.1", "betas=0.9,0.99"] -> {"weight_decay": 0.1, "betas": (0.9, 0.99)}.

    Args:
        option: whose they are, for messages.

    Raises:
        UserError: names every line that is not key=value with a Python value.
    """
    parsed, problems = {}, []
    for line in lines or []:
        key, equals, value = (piece.strip() for piece in line.partition("="))
        try:
            parsed[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            equals = ""
        if not (key.isidentifier() and equals):
            problems.append(
                say(
                    f"{option}: {line!r} is not of the form name=value, with a value such as 0.1, True, None, "
                    "0.9,0.99 or 'text'.",
                    f"{option}：{line!r} 不是“名称=值”的形式，值应如 0.1、True、None、0.9,0.99 或 'text'。",
                )
            )
    if problems:
        raise UserError(problems)
    return parsed


USUAL_RATES = {"lion": 3e-5, "sgd": 1e-2}  # beginning of a name -> learning rate for Stable Diffusion; others 1e-4
OWN_RATES = ("prodigy", "dadapt")  # find the rate themselves and want 1


def usual_learning_rate(name: str, width: int) -> float:
    """The learning rate where the user gives none.

    Args:
        name: of the optimizer.
        width: channels of the model's first block. Narrower layers want larger steps of Adam and its like, in
            proportion: Yang et al. 2022, "Tensor Programs V", arXiv:2203.03466. 320 in every Stable Diffusion.
    """
    name = name.lower()
    if name.startswith(OWN_RATES):
        return 1.0
    rate = next((rate for beginning, rate in USUAL_RATES.items() if name.startswith(beginning)), 1e-4)
    return rate * 320 / width


def learning_rates(
    parts: Iterable[str],
    unet_lr: float | None,
    text_encoder_lr: float | list[float] | None,
    learning_rate: float,
) -> dict[str, float]:
    """The learning rate of each part that is trained; parts with 0 are frozen and left out.

    Args:
        parts: "denoiser", "text_encoder", "text_encoder_2".
        unet_lr, text_encoder_lr: None means `learning_rate`. A list: of the first text encoder, and of the second.

    Raises:
        UserError: nothing would be trained.
    """
    of_text = text_encoder_lr if isinstance(text_encoder_lr, list) else [text_encoder_lr] * 2
    rates = {part: unet_lr if part == "denoiser" else of_text[part == "text_encoder_2"] for part in parts}
    rates = {part: learning_rate if rate is None else rate for part, rate in rates.items()}
    trained = {part: rate for part, rate in rates.items() if rate > 0}
    if not trained:
        raise UserError(_nothing_to_train(rates))
    return trained


def parameter_groups(trained: dict[str, list[nn.Parameter]], rates: dict[str, float]) -> list[Group]:
    """A group for each name that has a rate: {"name", "params", "lr"}.

    Args:
        trained: name, such as "unet" or "unet_block5 plus" -> parameters.
        rates: the same names -> learning rate.
    """
    return [dict(name=name, params=trained[name], lr=rate) for name, rate in rates.items()]


class Lion(Optimizer):
    """Steps of one size, in the direction of the momentum's sign.

    Args:
        lr: a third to a tenth of AdamW's.
        betas: weight of the momentum in the direction of the step, and of the old momentum in the new one.
        weight_decay: decoupled; three to ten times AdamW's.

    Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675, algorithm 2.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | list[Group],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay))

        self._step_supports_amp_scaling = True  # GradScaler hands over `found_inf` and does not read it: no stall

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyrefly: ignore[bad-override]  # GradScaler gives none
        """One step from the gradients at hand; none where GradScaler found an infinite one."""
        assert closure is None
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                if scale is not None:
                    gradient.div_(scale)
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                if found_inf is not None:  # then everything below leaves things as they are
                    gradient = torch.where(found_inf > 0, momentum, gradient)
                share = 1.0 if found_inf is None else 1 - found_inf
                direction = momentum.lerp(gradient, 1 - beta1).sign_()
                parameter.sub_((direction + parameter * group["weight_decay"]) * (lr * share))
                momentum.lerp_(gradient, 1 - beta2)


def _plain(path: str, package: str | None = None, **defaults: Any) -> Row:
    """A row for a class that takes (groups, lr=..., **args); `package`: what to install where it is missing."""

    def row(groups: list[Group], learning_rate: float | None, args: Settings) -> Built:
        cls = _import(path, package)
        args = {**defaults, **args}
        _check_args(cls, args)
        try:
            optimizer = cls(groups, lr=learning_rate, **args)
        except (TypeError, ValueError) as error:  # "Invalid beta parameter at index 0: 1.5"
            raise UserError(
                say(f"optimizer_args: {cls.__name__}: {error}", f"optimizer_args：{cls.__name__} 不接受：{error}")
            ) from error
        settings = ", ".join(f"{key}={value}" for key, value in args.items() if key != "fused")
        told = f"({settings})" if settings else ""  # as sd-scripts writes it
        return Built(optimizer, f"{cls.__module__}.{cls.__name__}{told}", [])

    return row


def _finds_its_rate(path: str, package: str) -> Row:
    """A row for an optimizer that finds the learning rate itself; lr is a factor for what it finds, usually 1."""
    name = path.rpartition(".")[2]

    def row(groups: list[Group], learning_rate: float | None, args: Settings) -> Built:
        rates = {group["lr"] for group in groups}
        if len(rates) > 1:
            raise UserError(_one_rate_for_all(name, rates))
        built = _plain(path, package)(groups, learning_rate, args)
        rate = rates.pop()
        if rate < 0.1:
            built.notices.append(
                say(
                    f"{name} multiplies the learning rate it finds by {rate:g}: that is very little. The usual "
                    "value is 1.",
                    f"{name} 会把自己找到的学习率乘以 {rate:g}，这太小了，通常为 1。",
                )
            )
        return built

    return row


class ScheduleFree(Protocol):
    """An optimizer whose parameters are either those that are trained or their average."""

    def train(self) -> None: ...

    def eval(self) -> None: ...


def _schedule_free(path: str) -> Row:
    """A row for Defazio et al. 2024, "The Road Less Scheduled", arXiv:2405.15682: an average is the schedule.

    What is trained and what is saved differ: see `averaged`.
    """

    def row(groups: list[Group], learning_rate: float | None, args: Settings) -> Built:
        built = _plain(path, "schedulefree")(groups, learning_rate, args)
        cast(ScheduleFree, built.optimizer).train()
        built.notices.append(_needs_no_schedule(path.rpartition(".")[2]))
        return built

    return row


@contextmanager
def averaged(optimizer: Optimizer) -> Iterator[None]:
    """The parameters as they are to be saved and shown; for schedule-free optimizers that is their average."""
    if not is_schedule_free(optimizer):
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    schedule_free = cast(ScheduleFree, optimizer)
    schedule_free.eval()
    try:
        yield
    finally:
        schedule_free.train()
        with torch.no_grad():  # to the bit: the way there and back rounds, and looking must not change what is learnt
            for parameter, values in zip(parameters, kept, strict=True):
                parameter.copy_(values)


def take_over(optimizer: Optimizer, saved: StateDict, args: Settings) -> list[str]:
    """Go on with what an optimizer of the same class has learned; what the user asks for now stays as it is.

    A group's settings (its rate, weight decay, betas, ...) are asked for; all else in it, such as the rate that Prodigy
    has found, is learned. No schedule may have been made for the optimizer yet.

    Args:
        saved: `state_dict()` of the earlier optimizer.
        args: the optimizer's own settings, from `parse_args`.

    Returns:
        Names of the groups that begin anew: they were not there, or held other tensors.
    """
    not_learned = {*inspect.signature(type(optimizer)).parameters, *args, *OF_SCHEDULES, "name", "params"}
    groups_then = {group.get("name"): group for group in saved["param_groups"]}
    now = optimizer.state_dict()
    state: dict[int, Any] = {}
    begun_anew = []
    for group, described in zip(optimizer.param_groups, now["param_groups"], strict=True):
        then = groups_then.get(group["name"], dict(params=[]))
        places = dict(zip(described["params"], then["params"], strict=False))
        kept = {place: saved["state"][earlier] for place, earlier in places.items() if earlier in saved["state"]}
        of_parameter = dict(zip(described["params"], group["params"], strict=True))
        is_same = len(then["params"]) == len(described["params"])
        if not is_same or not all(_fits(kept[place], of_parameter[place]) for place in kept):
            begun_anew.append(group["name"])
            continue
        state |= kept
        described |= {key: value for key, value in then.items() if key not in not_learned}
    optimizer.load_state_dict({**saved, **now, "state": state})
    return begun_anew


def _fits(state: dict[str, Any], parameter: nn.Parameter) -> bool:
    """Whether what an optimizer remembers of a parameter may be of one of this shape."""
    shapes = {value.shape for value in state.values() if isinstance(value, torch.Tensor) and value.dim()}
    rows = parameter.shape[:-1]  # Adafactor's memory of a matrix
    return not shapes or parameter.shape in shapes or rows in shapes


def remembers_the_same(name: str, then: Settings, now: Settings, like: nn.Parameter) -> bool:
    """Whether an optimizer finds in what it remembered with other settings all that it looks for: tried with a step.

    Adam with amsgrad looks for one tensor more, Prodigy with another slice_p for tensors of another size.
    """

    def remembered(args: Settings) -> set[tuple[str, torch.Size | None]]:
        parameter = nn.Parameter(torch.ones([8] * like.dim(), dtype=like.dtype, device=like.device))
        parameter.grad = torch.ones_like(parameter)
        group = dict(name="probe", params=[parameter], lr=1e-3)
        probe = build(name, [group], learning_rate=1e-3, args=args).optimizer
        probe.step()
        return {(key, getattr(value, "shape", None)) for key, value in probe.state[parameter].items()}

    return then == now or remembered(now) <= remembered(then)


def is_schedule_free(optimizer: Optimizer) -> bool:
    return "train_mode" in optimizer.param_groups[0]


def _adafactor(groups: list[Group], learning_rate: float | None, args: Settings) -> Built:
    """Shazeer and Stern 2018, arXiv:1804.04235. Unless relative_step=False it sets the learning rate itself."""
    row = _plain("transformers.optimization.Adafactor", "transformers")
    if not args.get("relative_step", True):
        return row(groups, learning_rate, args)
    built = row([{**group, "lr": None} for group in groups], None, {"relative_step": True, **args})
    built.notices.append(_adafactor_sets_the_rate())
    return built


def _bitsandbytes(name: str, instead: str, **defaults: Any) -> Row:
    """A row for an optimizer with its memory in 8 bits or in pages (Dettmers et al. 2021, arXiv:2110.02861).

    Where bitsandbytes does not run, `instead`: the same algorithm, which learns alike.
    """

    def row(groups: list[Group], learning_rate: float | None, args: Settings) -> Built:
        path = f"bitsandbytes.optim.{name}"
        if reason := _why_no_bitsandbytes(path, groups[0]["params"][0].device):
            built = OPTIMIZERS[instead](groups, learning_rate, args)
            built.notices.append(
                say(
                    f"{name} cannot run here ({reason}): {instead} is used. It learns equally well and needs a "
                    "little more memory.",
                    f"此处无法使用 {name}（{reason}），改用 {instead}：学习效果相近，只是多占一点显存。",
                )
            )
            return built
        return _plain(path, "bitsandbytes", **defaults)(groups, learning_rate, args)

    return row


def _why_no_bitsandbytes(path: str, device: torch.device) -> str:
    """Tried with one real step, because many installations import well and fail then. Empty where it runs."""
    if device.type != "cuda":
        return say(f"the device is {device.type}", f"设备为 {device.type}")
    if torch.version.hip:  # where it lacks the card's code it ends the process
        return say("torch is a ROCm build", "torch 是 ROCm 版")
    try:
        parameter = nn.Parameter(torch.ones(8192, device=device))  # below 4096 values its state is not 8 bit
        parameter.grad = torch.ones_like(parameter)
        _import(path, "bitsandbytes")([parameter], lr=0.1).step()
        return "" if bool((parameter < 1).all()) else say("its step does nothing", "执行后没有效果")
    except Exception as error:  # whatever its binary brings up: missing, for another CUDA, for another card
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


OPTIMIZERS: dict[str, Row] = {  # (groups, learning_rate, args) -> Built
    "AdamW": _plain("torch.optim.AdamW", fused=True),
    "AdamW8bit": _bitsandbytes("AdamW8bit", "AdamW"),
    "PagedAdamW": _bitsandbytes("PagedAdamW", "AdamW"),
    "PagedAdamW8bit": _bitsandbytes("PagedAdamW8bit", "AdamW"),
    "PagedAdamW32bit": _bitsandbytes("PagedAdamW32bit", "AdamW"),
    "Lion": _plain(f"{__name__}.Lion"),
    "Lion8bit": _bitsandbytes("Lion8bit", "Lion"),
    "PagedLion8bit": _bitsandbytes("PagedLion8bit", "Lion"),
    # Mishchenko and Defazio 2023, arXiv:2306.06101; Defazio and Mishchenko 2023, arXiv:2301.07733
    "Prodigy": _finds_its_rate("prodigyopt.Prodigy", "prodigyopt"),
    "DAdaptation": _finds_its_rate("dadaptation.experimental.DAdaptAdamPreprint", "dadaptation"),
    "DAdaptAdamPreprint": _finds_its_rate("dadaptation.experimental.DAdaptAdamPreprint", "dadaptation"),
    "DAdaptAdam": _finds_its_rate("dadaptation.DAdaptAdam", "dadaptation"),
    "DAdaptAdaGrad": _finds_its_rate("dadaptation.DAdaptAdaGrad", "dadaptation"),
    "DAdaptAdan": _finds_its_rate("dadaptation.DAdaptAdan", "dadaptation"),
    "DAdaptAdanIP": _finds_its_rate("dadaptation.experimental.DAdaptAdanIP", "dadaptation"),
    "DAdaptLion": _finds_its_rate("dadaptation.DAdaptLion", "dadaptation"),
    "DAdaptSGD": _finds_its_rate("dadaptation.DAdaptSGD", "dadaptation"),
    "AdamWScheduleFree": _schedule_free("schedulefree.AdamWScheduleFree"),
    "RAdamScheduleFree": _schedule_free("schedulefree.RAdamScheduleFree"),
    "SGDScheduleFree": _schedule_free("schedulefree.SGDScheduleFree"),
    "Adafactor": _adafactor,
    "Adam": _plain("torch.optim.Adam", fused=True),
    "SGD": _plain("torch.optim.SGD", fused=True),
    "SGDNesterov": _plain("torch.optim.SGD", fused=True, momentum=0.9, nesterov=True),
    "SGDNesterov8bit": _bitsandbytes("SGD8bit", "SGDNesterov", momentum=0.9, nesterov=True),
}


def _import(path: str, package: str | None) -> type[Any]:  # an Optimizer; each takes arguments of its own
    """The class at "package.module.Class"."""
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except ImportError as error:
        package = package or module.split(".")[0]
        raise UserError(
            say(
                f"optimizer_type: {path} cannot be imported ({error}). Install it: pip install {package}",
                f"optimizer_type：无法导入 {path}（{error}）。请安装：pip install {package}",
            )
        ) from error
    except AttributeError as error:
        raise UserError(
            say(f"optimizer_type: {module} has no {name}.", f"optimizer_type：{module} 里没有 {name}。")
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Optimizer)):
        raise UserError(
            say(
                f"optimizer_type: {path} is not an optimizer of torch.", f"optimizer_type：{path} 不是 torch 的优化器。"
            )
        )
    return cls


def _check_args(cls: type[Any], args: Settings) -> None:
    accepted = inspect.signature(cls).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        return
    own = [name for name in accepted if name not in {"params", "lr"}]
    problems = [
        say(
            f"optimizer_args: {cls.__name__} has no setting {name}. It has: {', '.join(own)}.",
            f"optimizer_args：{cls.__name__} 没有参数 {name}。可用：{'、'.join(own)}。",
        )
        for name in args
        if name not in own
    ]
    if problems:
        raise UserError(problems)


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:g}" for number in sorted(numbers))


# ---- What is said ----


def _no_such_optimizer(name: str, hint: str) -> str:
    return say(
        f"optimizer_type = {name}: there is no such optimizer.{hint} There are: {', '.join(OPTIMIZERS)}, "
        "and any import path such as package.module.Class.",
        f"optimizer_type = {name}：没有这种优化器。{hint}可用：{'、'.join(OPTIMIZERS)}，或 Python 导入路径，"
        "如 package.module.Class。",
    )


def _nothing_to_train(rates: dict[str, float]) -> str:
    return say(
        f"nothing would be trained: the learning rates of {', '.join(rates) or 'all parts'} are 0. "
        "Set unet_lr or text_encoder_lr above 0.",
        f"没有任何部分会被训练：{'、'.join(rates) or '各部分'}的学习率都是 0。"
        "请把 unet_lr 或 text_encoder_lr 设为大于 0。",
    )


def _one_rate_for_all(name: str, rates: Iterable[float]) -> str:
    return say(
        f"{name} finds one learning rate for all parts, but they were given {_listed(rates)}. Set unet_lr "
        "and text_encoder_lr to None (or one of them to 0, to freeze that part), and learning_rate = 1.",
        f"{name} 为所有部分寻找同一个学习率，但设置了不同的值：{_listed(rates)}。"
        "请把 unet_lr 和 text_encoder_lr 设为 None（或把其中一个设为 0 以冻结该部分），"
        "learning_rate 设为 1。",
    )


def _needs_no_schedule(name: str) -> str:
    return say(
        f"{name} needs no schedule: lr_scheduler and lr_warmup_steps are not used "
        '(optimizer_args = ["warmup_steps=100"] warms up)',
        f"{name} 不需要学习率调度：lr_scheduler 与 lr_warmup_steps 不起作用"
        '（预热请用 optimizer_args = ["warmup_steps=100"]）',
    )


def _adafactor_sets_the_rate() -> str:
    return say(
        "Adafactor sets the learning rate itself, so learning_rate, unet_lr, text_encoder_lr and lr_scheduler are "
        'not used. To use them: optimizer_args = ["relative_step=False", "scale_parameter=False"].',
        "Adafactor 自行决定学习率，learning_rate、unet_lr、text_encoder_lr、lr_scheduler 不起作用。"
        '如要使用它们：optimizer_args = ["relative_step=False", "scale_parameter=False"]。',
    )
