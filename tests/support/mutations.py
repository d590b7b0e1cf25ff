"""A grammar of what users do to a network after its conversion, and to its source alike."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

Mutation = Callable[[nn.Module], object]


class Block(nn.Module):
    """A residual block whose forward reads attributes of its own, and its mode."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm, self.act, self.factor, self.skip = nn.BatchNorm2d(width), nn.ReLU(), 0.5, True
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y = self.drop(self.act(self.norm(self.conv(x))))
        y = F.dropout(y, 0.1, self.training)
        return x + self.factor * y if self.skip else y


def made() -> nn.Module:
    """Return the source, in double precision and evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.MaxPool2d(2),
            Block(6),
            nn.Conv2d(6, 6, 3, padding=1, groups=3),
            nn.BatchNorm2d(6),
            nn.PReLU(6),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"),
            nn.ReLU6(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(24, 3),
        )
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return model.double().eval()


def _set(path: str, name: str, value: object) -> Mutation:
    return lambda m: setattr(m.get_submodule(path), name, copy.deepcopy(value))


def _put(path: str, new: Callable[[nn.Module], nn.Module]) -> Mutation:
    """Put another module in a place; it may use the one that is there."""

    def change(model: nn.Module) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            above, _, name = path.rpartition(".")
            old = model.get_submodule(path)
            module = new(old).to(next(model.parameters()).dtype).train(old.training)
            setattr(model.get_submodule(above), name, module)

    return change


def _weight(path: str, change: Callable[[Tensor], object]) -> Mutation:
    def run(model: nn.Module) -> None:
        with torch.no_grad():
            change(model.get_parameter(path))

    return run


def _amplified(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
    return 1.5 * output


def _observed(_module: nn.Module, _args: object, _output: Tensor) -> None:
    return None


def _negated(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (-args[0], *args[1:])


class Scaled(nn.Conv2d):
    """A convolution that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        """Scale the result."""
        return 2 * super().forward(input)


class Named(nn.Conv2d):
    """A convolution under another name."""


class Halved(nn.Module):
    """A parametrisation."""

    def forward(self, x: Tensor) -> Tensor:
        """Halve."""
        return 0.5 * x


def _as(path: str, kind: type[nn.Module]) -> Mutation:
    return lambda m: setattr(m.get_submodule(path), "__class__", kind)


def _tied(model: nn.Module) -> None:
    model.get_submodule("3.conv").weight = nn.Parameter(model.get_parameter("8.weight").detach())
    model.get_submodule("8").weight = model.get_submodule("3.conv").weight


def _loaded(**more: Any) -> Mutation:
    def change(model: nn.Module) -> None:
        state = {k: v * 1.1 if v.is_floating_point() else v for k, v in model.state_dict().items()}
        own = {k: v for k, v in state.items() if not k.startswith("pursuit.")}
        model.load_state_dict(own, strict=False, **more)

    return change


def _pruned_for_good(model: nn.Module) -> None:
    module = model.get_submodule("4")
    prune.ln_structured(module, "weight", 0.34, n=2, dim=0)
    prune.remove(module, "weight")


def _unparametrised(model: nn.Module) -> None:
    module = model.get_submodule("0")
    parametrize.register_parametrization(module, "weight", Halved())
    parametrize.remove_parametrizations(module, "weight")


def _patched(path: str) -> Mutation:
    def change(model: nn.Module) -> None:
        module = model.get_submodule(path)
        before = type(module).forward
        module.forward = lambda x: before(module, 2 * x)  # type: ignore[method-assign]

    return change


def _stepped(model: nn.Module) -> None:
    own = [p for n, p in model.named_parameters() if not n.startswith("pursuit.")]
    for parameter in own:
        parameter.grad = torch.full_like(parameter, 0.05)
    torch.optim.SGD(own, 0.3, weight_decay=0.1).step()
    model.zero_grad(set_to_none=True)


def _mode(path: str, training: bool) -> Mutation:
    return lambda m: m.get_submodule(path).train(training)


_ATTRIBUTES: dict[tuple[str, str], tuple[object, ...]] = {
    ("0", "stride"): ((2, 2), (1, 2), 2),
    ("0", "padding"): ((0, 0), (2, 1), "same", "valid", 2),
    ("0", "dilation"): ((2, 2), (1, 2)),
    ("0", "groups"): (3,),
    ("0", "padding_mode"): ("circular", "zeros"),
    ("0", "bias"): (None,),
    ("0", "out_channels"): (7,),
    ("4", "groups"): (1, 2),
    ("4", "padding"): ("same", (1, 0)),
    ("8", "padding"): ((2, 2),),
    ("8", "padding_mode"): ("zeros", "replicate"),
    ("8", "_reversed_padding_repeated_twice"): ([2, 2, 2, 2],),
    ("3.norm", "eps"): (0.5, 0),
    ("3.norm", "momentum"): (0.5, None),
    ("3.norm", "track_running_stats"): (False,),
    ("3.norm", "running_mean"): (None,),
    ("3.norm", "weight"): (None,),
    ("3.norm", "affine"): (False,),
    ("5", "training"): (True,),
    ("5", "track_running_stats"): (False,),
    ("3.conv", "training"): (True,),
    ("3", "training"): (True,),
    ("3", "factor"): (2.0, 0.5),
    ("3", "skip"): (False, 1),
    ("3", "note"): ("a new attribute",),
    ("3.drop", "p"): (0.0, 0.7, 1.0),
    ("12", "p"): (0.5, 1.0),
    ("12", "inplace"): (True,),
    ("1", "negative_slope"): (0.5, 0.0, 1.0, -0.3, 2.0),
    ("1", "inplace"): (True,),
    ("2", "kernel_size"): (3, (2, 1)),
    ("2", "stride"): (1, (2, 1)),
    ("2", "padding"): (1,),
    ("2", "dilation"): (2,),
    ("2", "ceil_mode"): (True,),
    ("2", "return_indices"): (True,),
    ("7", "count_include_pad"): (False,),
    ("7", "padding"): (1,),
    ("7", "ceil_mode"): (True,),
    ("7", "divisor_override"): (3,),
    ("7", "kernel_size"): (1, 3),
    ("9", "max_val"): (3.0, 0.1),
    ("9", "min_val"): (-0.2,),
    ("9", "inplace"): (False,),
    ("10", "output_size"): ((2, 2), 1),
    ("11", "start_dim"): (2,),
    ("13", "bias"): (None,),
    ("13", "in_features"): (7,),
}

MUTATIONS: dict[str, Mutation] = {
    **{
        f"{path}.{name} = {value!r}": _set(path, name, value)
        for (path, name), values in _ATTRIBUTES.items()
        for value in values
    },
    # modules
    "same kind": _put("0", lambda _: nn.Conv2d(3, 6, 5, padding=2)),
    "same kind without bias": _put("4", lambda _: nn.Conv2d(6, 6, 1, bias=False)),
    "conv renamed": _put("4", lambda _: Named(6, 6, 3, padding=1)),
    "conv scaled": _put("4", lambda _: Scaled(6, 6, 3, padding=1)),
    "conv by Identity": _put("4", lambda _: nn.Identity()),
    "conv in a Sequential": _put("4", lambda old: nn.Sequential(old)),
    "conv by LazyConv": _put("4", lambda _: nn.LazyConv2d(6, 1)),
    "norm anew": _put("5", lambda _: nn.BatchNorm2d(6, eps=0.1)),
    "norm by Identity": _put("5", lambda _: nn.Identity()),
    "norm by GroupNorm": _put("5", lambda _: nn.GroupNorm(2, 6)),
    "norm by InstanceNorm": _put("3.norm", lambda _: nn.InstanceNorm2d(6)),
    "norm by SyncBatchNorm": _put("5", lambda _: nn.SyncBatchNorm(6)),
    "ReLU anew": _put("3.act", lambda _: nn.ReLU()),
    "ReLU by GELU": _put("3.act", lambda _: nn.GELU()),
    "ReLU by ReLU6": _put("3.act", lambda _: nn.ReLU6()),
    "ReLU6 by ReLU": _put("9", lambda _: nn.ReLU(inplace=True)),
    "ReLU6 by Hardtanh": _put("9", lambda _: nn.Hardtanh(0, 3, inplace=True)),
    "slope anew": _put("1", lambda _: nn.LeakyReLU(0.4)),
    "PReLU anew": _put("6", lambda _: nn.PReLU()),
    "pool anew": _put("2", lambda _: nn.MaxPool2d(3, 2, 1)),
    "pool by average": _put("2", lambda _: nn.AvgPool2d(2)),
    "average by maximum": _put("7", lambda _: nn.MaxPool2d(2)),
    "dropout by Identity": _put("12", lambda _: nn.Identity()),
    "inner dropout by Dropout2d": _put("3.drop", lambda _: nn.Dropout2d(0.5)),
    "head anew": _put("13", lambda _: nn.Linear(24, 5)),
    "head in two": _put("13", lambda _: nn.Sequential(nn.Linear(24, 4), nn.ReLU())),
    "head by Identity": _put("13", lambda _: nn.Identity()),
    "block by a layer": _put("3", lambda _: nn.Conv2d(6, 6, 1)),
    "block anew": _put("3", lambda _: Block(6)),
    "shared layer": lambda m: setattr(m, "8", m.get_submodule("3.conv")),
    "layer removed": lambda m: delattr(m, "12"),
    "spare layer": lambda m: m.get_submodule("3").add_module("spare", nn.ReLU()),
    "class changed": _as("4", Scaled),
    "class renamed": _as("4", Named),
    "activation's class changed": _as("9", nn.Hardtanh),
    "block's class changed": _as("3", type("Other", (Block,), {"forward": lambda s, x: 2 * x})),
    # hooks
    **{
        f"{what} of {path or 'the network'}": change
        for path in ("0", "3", "3.act", "9", "11", "13")
        for what, change in {
            "hook": lambda m, p=path: m.get_submodule(p).register_forward_hook(_amplified),
            "observer": lambda m, p=path: m.get_submodule(p).register_forward_hook(_observed),
            "pre-hook": lambda m, p=path: m.get_submodule(p).register_forward_pre_hook(_negated),
            "kwargs hook": lambda m, p=path: m.get_submodule(p).register_forward_hook(
                lambda _m, _a, _k, y: 2 * y, with_kwargs=True
            ),
            "prepended hook": lambda m, p=path: m.get_submodule(p).register_forward_hook(
                _amplified, prepend=True
            ),
        }.items()
    },
    "hook on a weight": lambda m: m.get_parameter("0.weight").register_hook(lambda bar: bar) and 0,
    # weights
    "data scaled": lambda m: m.get_parameter("4.weight").data.mul_(1.3),
    "weight scaled": _weight("0.weight", lambda w: w.mul_(0.7)),
    "weight zeroed": _weight("3.conv.weight", lambda w: w.zero_()),
    "entry set": _weight("8.weight", lambda w: w[0].fill_(0.3)),
    "norm scaled": _weight("5.weight", lambda w: w.mul_(-1.5)),
    "slope weight": _weight("6.weight", lambda w: w.fill_(0.6)),
    "negative slope weight": _weight("6.weight", lambda w: w[0].fill_(-0.3)),
    "head scaled": _weight("13.weight", lambda w: w.add_(0.1)),
    "data assigned": lambda m: setattr(
        m.get_parameter("8.weight"), "data", 0.5 * m.get_parameter("8.weight").data
    ),
    "assigned": lambda m: setattr(
        m.get_submodule("8"), "weight", nn.Parameter(0.7 * m.get_parameter("8.weight").detach())
    ),
    "bias added": lambda m: setattr(
        m.get_submodule("3.conv"), "bias", nn.Parameter(torch.linspace(-1, 1, 6).double())
    ),
    "tied": _tied,
    "frozen weight": lambda m: m.get_parameter("0.weight").requires_grad_(False),
    "frozen": lambda m: m.requires_grad_(False),
    "optimizer": _stepped,
    "buffer scaled": lambda m: m.get_buffer("3.norm.running_var").mul_(2.0),
    "buffer assigned": lambda m: setattr(
        m.get_submodule("5"), "running_mean", torch.linspace(-1, 1, 6).double()
    ),
    "statistics reset": lambda m: m.get_submodule("5").reset_running_stats(),
    "reinitialised": lambda m: nn.init.constant_(m.get_parameter("0.weight"), 0.05),
    "loaded": _loaded(),
    "loaded by assignment": _loaded(assign=True),
    # dtype and layout
    "float": lambda m: m.float(),
    "double": lambda m: m.double(),
    "layer in float": lambda m: m.get_submodule("4").float(),
    "channels_last": lambda m: m.to(memory_format=torch.channels_last),
    # modes
    "train": lambda m: m.train(),
    "eval": lambda m: m.eval(),
    "norm trains": _mode("5", True),
    "inner norm evaluates": _mode("3.norm", False),
    "block trains": _mode("3", True),
    "block evaluates": _mode("3", False),
    "dropout trains": _mode("12", True),
    # what computes weights
    "pruned": lambda m: prune.l1_unstructured(m.get_submodule("4"), "weight", 0.5) and 0,
    "pruned head": lambda m: prune.l1_unstructured(m.get_submodule("13"), "weight", 0.5) and 0,
    "pruned for good": _pruned_for_good,
    "weight_norm": lambda m: weight_norm(m.get_submodule("3.conv")) and 0,
    "parametrised": lambda m: parametrizations.weight_norm(m.get_submodule("0")) and 0,
    "parametrised head": lambda m: parametrize.register_parametrization(
        m.get_submodule("13"), "weight", Halved()
    ),
    "unparametrised": _unparametrised,
    # methods
    "patched": _patched("9"),
    "patched block": _patched("3"),
    "patched head": _patched("13"),
}


def _saved(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # type: ignore[no-any-return]


def _own_state(net: nn.Module) -> nn.Module:
    net.load_state_dict(net.state_dict())
    return net


#: What is done to the network alone, and must change nothing.
FREE: dict[str, Callable[[nn.Module], nn.Module]] = {
    "nothing": lambda net: net,
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "saved": _saved,
    "own state": _own_state,
}
#: Settings of the network, given to the fresh conversion.
SETTINGS: dict[str, tuple[object, ...]] = {
    "solver": ("global", "layered", "synchronous"),
    "memory": ("store", "recompute"),
}
