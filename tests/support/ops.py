"""Small networks, one per operation or habit of real models; used by test_generality.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

CHANNELS = 4


class Around(nn.Module):
    """conv, relu, the operation, conv, relu, mean, linear; the operation acts on (B, 4, H, W)."""

    def __init__(self, op: Any, out: int = CHANNELS, dims: int = 2) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.conv1, self.conv2 = conv(3, CHANNELS, 3, padding=1), conv(out, 5, 3, padding=1)
        self.fc = nn.Linear(5, 3)
        self.op = op
        self.dims = tuple(range(2, dims + 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.op(F.relu(self.conv1(x)))
        return self.fc(F.relu(self.conv2(x)).mean(self.dims))


class Before(nn.Module):
    """conv, the operation, relu: the operation stands before the activation."""

    def __init__(self, op: Any, out: int = CHANNELS) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.Conv2d(out, 5, 1)
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.op(self.conv1(x)))
        return F.relu(self.conv2(x)).mean((2, 3))


def shuffle(x: Tensor) -> Tensor:
    b, c, h, w = x.size()
    x = x.view(b, 2, c // 2, h, w)
    return torch.transpose(x, 1, 2).contiguous().view(b, -1, h, w)


def shuffle_shape(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.reshape(b, 2, c // 2, h, w).permute(0, 2, 1, 3, 4).flatten(1, 2)


def swap_halves(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return torch.cat((b, a), dim=1)


def unpooled(x: Tensor) -> Tensor:
    return F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2, output_size=x.size())


def split_sizes(x: Tensor) -> Tensor:
    a, b = torch.split(x, [1, 3], 1)
    return torch.cat([b, a], 1)


def unstack(x: Tensor) -> Tensor:
    first, *_ = (x.unbind(1)[0], x)
    return x + first.unsqueeze(1)


def stacked(x: Tensor) -> Tensor:
    return torch.stack([x, 2.0 * x], 2).flatten(1, 2)


def blur(x: Tensor) -> Tensor:
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    weight = kernel.expand(CHANNELS, 1, 3, 3).to(x.dtype)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, stride=2, groups=x.shape[1])


class BlurPool(nn.Module):
    """A fixed filter in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        kernel = torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 2, 1])) / 16
        self.register_buffer("kernel", kernel[None, None].repeat(CHANNELS, 1, 1, 1))
        self.pad = nn.ReflectionPad2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.pad(x), self.kernel, stride=2, groups=x.size(1))


class Squeeze(nn.Module):
    """Squeeze-excite, with any gate function."""

    def __init__(self, gate: Callable[[Tensor], Tensor] = torch.sigmoid) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(CHANNELS, 2, 1), nn.Conv2d(2, CHANNELS, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Star(nn.Module):
    """The product of StarNet: an activation times a linear value, both of one latent."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.a(x)) * self.b(x)


class LinearSqueeze(nn.Module):
    """Squeeze-excite as most repositories write it: view, Linear, Sequential, view, expand_as."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(CHANNELS, 2), nn.ReLU(inplace=True), nn.Linear(2, CHANNELS), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.fc(self.pool(x).view(b, c)).view(b, c, 1, 1)
        return x * y.expand_as(x)


class ECA(nn.Module):
    """Efficient channel attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean((2, 3)).view(x.shape[0], 1, -1)
        y = torch.sigmoid(self.conv(y)).view(x.shape[0], -1, 1, 1)
        return x * y.expand_as(x)


class SpatialGate(nn.Module):
    """CBAM's spatial attention: max and mean over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return torch.sigmoid(self.conv(y)) * x


class BackToSize(nn.Module):
    """A strided convolution, and a transposed one back to the size before it."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1)
        self.up = nn.ConvTranspose2d(CHANNELS, 2, 3, 2, 1)
        self.up2 = nn.ConvTranspose2d(2, CHANNELS, (2, 3), (1, 2), dilation=2, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(F.relu(self.down(x[:, :, 1:])), output_size=x[:, :, 1:].size())
        return self.up2(F.relu(y), [y.size(2) + 2, 2 * y.size(3) + 3 + y.size(2) % 2])


class LeftProduct(nn.Module):
    """Mixes channels, as a graph convolution mixes its nodes: A x, by einsum and by matmul."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("adjacency", torch.tensor([[0.5, 0.5, 0, 0], [0, 0.2, 0, 0.8]] * 2))
        self.importance = nn.Parameter(torch.rand(CHANNELS, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.einsum("vc,nchw->nvhw", self.adjacency * self.importance, x)
        return (self.adjacency @ mixed.flatten(2)).view(x.shape)


class LayerScale(nn.Module):
    """A learned factor per channel on a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(0.3 * torch.ones(CHANNELS, 1, 1))
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.conv(x)


class ScalarAffine(nn.Module):
    """Learned scalars, as in Fixup or normaliser-free networks."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor(-0.2))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale + self.bias) / 1.5 - 0.1


class StandardWeight(nn.Module):
    """Weight standardisation as a parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        dims = (1, 2, 3)
        return (weight - weight.mean(dims, keepdim=True)) / (weight.std(dims, keepdim=True) + 1e-5)


class StandardConv(nn.Conv2d):
    """Weight standardisation as a subclass with its own forward."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def standard_parametrized() -> nn.Module:
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    parametrize.register_parametrization(conv, "weight", StandardWeight())
    return conv


class NormAct(nn.BatchNorm2d):
    """BatchNorm and activation in one, calling the parent's forward: its checks are inlined."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__(channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class NormActInline(nn.BatchNorm2d):
    """The same with BatchNorm's body written out, as timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        batch = True if self.training else self.running_mean is None and self.running_var is None
        x = F.batch_norm(
            x,
            self.running_mean if not self.training or self.track_running_stats else None,
            self.running_var if not self.training or self.track_running_stats else None,
            self.weight,
            self.bias,
            batch,
            factor,
            self.eps,
        )
        return F.relu(x)


class Careless(nn.Module):
    """Size checks, assertions, counters, isinstance, as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.calls = CHANNELS, 0
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += 1
        if x.shape[1] != self.channels:
            raise ValueError(f"expected {self.channels} channels, got {x.shape[1]}")
        assert x.dim() == 4, "need a batch of images"
        assert len(x.shape) == 4
        if not isinstance(x, Tensor):
            return x[0]
        _, c, h, _ = x.shape
        assert c == self.channels and h > 1, (c, h)  # noqa: PT018
        if x.ndim == 3:
            x = x.unsqueeze(0)
        return x


class DropPath(nn.Module):
    """timm's stochastic depth."""

    def __init__(self, p: float = 0.3) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep = 1 - self.p
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        mask = x.new_empty(shape).bernoulli_(keep)
        mask.div_(keep)
        return x * mask


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


def conv(stride: int = 1, inputs: int = CHANNELS, out: int = CHANNELS, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, out, 3, stride, 1, **more)


def mod(*modules: nn.Module) -> nn.Module:
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def bn() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(CHANNELS)


C = CHANNELS
#: name -> function that builds the network; each takes (B, 3, H, W).
OPS: dict[str, Callable[[], nn.Module]] = {
    "shuffle": lambda: Around(shuffle),
    "shuffle_shape": lambda: Around(shuffle_shape),
    "shuffle_before": lambda: Before(shuffle),
    "channel_shuffle": lambda: Around(nn.ChannelShuffle(2)),
    "chunk": lambda: Around(swap_halves),
    "chunk_before": lambda: Before(swap_halves),
    "chunk_loop": lambda: Around(lambda x: torch.cat([2.0 * p for p in x.chunk(4, 1)], 1)),
    "split": lambda: Around(split_sizes),
    "unbind": lambda: Around(unstack),
    "stack": lambda: Around(stacked, 2 * C),
    "slice": lambda: Around(lambda x: x[:, 1:3, ::2, 1:-1], 2),
    "slice_add": lambda: Around(lambda x: x[:, :2] + x[:, 2:], 2),
    "narrow": lambda: Around(lambda x: x.narrow(1, 1, 2), 2),
    "index_none": lambda: Around(lambda x: x[:, None].squeeze(1)),
    "permute": lambda: Around(lambda x: x.permute(0, 1, 3, 2)),
    "permute_linear": lambda: Around(
        mod(Lambda(lambda x: x.permute(0, 2, 3, 1)), nn.Linear(C, C), Lambda(last_to_first))
    ),
    "transpose": lambda: Around(lambda x: x.transpose(2, 3)),
    "squeeze": lambda: Around(lambda x: x.unsqueeze(2).squeeze(2)),
    "sum": lambda: Around(lambda x: x - 0.25 * x.sum(1, keepdim=True)),
    "mean": lambda: Around(lambda x: x - x.mean((2, 3), keepdim=True)),
    "mean_before": lambda: Before(lambda x: x - x.mean((2, 3), keepdim=True)),
    "sub": lambda: Around(lambda x: 1.0 - 2.0 * x),
    "rsub_div": lambda: Around(lambda x: -(3 - x) / 2),
    "mul_tensor": lambda: Around(lambda x: x * torch.tensor(0.5)),
    "mul_channel": lambda: Before(
        lambda x: x * torch.arange(1, C + 1).view(1, -1, 1, 1) + torch.ones(C, 1, 1)
    ),
    "zeros_like": lambda: Around(lambda x: torch.cat([x, torch.zeros_like(x)], 1), 2 * C),
    "new_zeros": lambda: Around(
        lambda x: torch.cat([x, x.new_zeros(x.shape[0], 2, x.shape[2], x.shape[3])], 1), C + 2
    ),
    "shortcut_a": lambda: Around(
        lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)) + 0.0, C + 2
    ),
    "scalar_affine": lambda: Around(ScalarAffine()),
    "scalar_affine_before": lambda: Before(ScalarAffine()),
    "layer_scale": lambda: Around(LayerScale()),
    "relu6": lambda: Around(mod(conv(), nn.ReLU6())),
    "hardtanh": lambda: Around(mod(conv(), nn.Hardtanh(-0.5, 0.7))),
    "leaky": lambda: Around(mod(conv(), nn.LeakyReLU(0.2, inplace=True))),
    "prelu": lambda: Around(mod(conv(), nn.PReLU(C))),
    "clamp": lambda: Around(mod(conv(), Lambda(lambda x: x.clamp(min=0)))),
    "threshold": lambda: Around(mod(conv(), nn.Threshold(0, 0))),
    "preact_bn": lambda: Around(mod(bn(), nn.ReLU(), conv())),
    "sync_bn": lambda: Around(mod(conv(), nn.SyncBatchNorm(C))),
    "lone_bn": lambda: Around(bn()),
    "maxpool": lambda: Around(nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
    "functional_maxpool": lambda: Around(lambda x: F.max_pool2d(x, 2)),
    "adaptive_maxpool": lambda: Around(nn.AdaptiveMaxPool2d(3)),
    "max_of_channels": lambda: Around(lambda x: x - 0.5 * x.max(1, keepdim=True)[0]),
    "choices_before": lambda: Before(lambda x: torch.sort(x.topk(3, 1)[0], 2).values, 3),
    "greater_of_two": lambda: Before(lambda x: torch.max(*x.chunk(2, 1)), 2),
    "unpool": lambda: Around(unpooled),
    "avgpool": lambda: Around(nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)),
    "functional_avgpool": lambda: Around(lambda x: F.avg_pool2d(x, 2, 2, 0, True)),
    "adaptive_avgpool": lambda: Around(lambda x: F.adaptive_avg_pool2d(x, (3, 2))),
    "global_avgpool": lambda: Around(lambda x: F.avg_pool2d(x, x.size()[2:])),
    "max_before": lambda: Before(nn.MaxPool2d(2)),
    "dilated": lambda: Around(nn.Conv2d(C, C, 3, padding=2, dilation=2, groups=2)),
    "depthwise": lambda: Around(mod(conv(groups=C), bn(), nn.Conv2d(C, C, 1), bn(), nn.ReLU6())),
    "same": lambda: Around(nn.Conv2d(C, C, (2, 3), padding="same")),
    "reflect_conv": lambda: Around(nn.Conv2d(C, C, 3, padding=1, padding_mode="reflect")),
    "circular_conv": lambda: Around(nn.Conv2d(C, C, 3, padding=1, padding_mode="circular")),
    "transposed": lambda: Around(nn.ConvTranspose2d(C, C, 3, 2, 1, output_padding=1)),
    "transposed_size": lambda: Around(nn.ConvTranspose2d(C, C, 2, 2)),
    "nearest": lambda: Around(nn.Upsample(scale_factor=2)),
    "bilinear": lambda: Around(
        lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear", align_corners=False)
    ),
    "bilinear_size": lambda: Around(
        lambda x: F.interpolate(x, size=x.shape[-2:], mode="bilinear", align_corners=True)
    ),
    "upsample_aligned": lambda: Around(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    ),
    "bicubic": lambda: Before(
        lambda x: F.interpolate(
            nn.functional.interpolate(x, scale_factor=1.7, mode="bicubic"),
            size=x.shape[2:],
            mode="bilinear",
            antialias=True,
        )
    ),
    "transposed_to_a_size": lambda: Around(BackToSize()),
    "index": lambda: Before(
        lambda x: x[:, [0, 2, 2, 1, 3]].repeat(1, 1, 2, 1)[:, :, ::2].flip(3), 5
    ),
    "windows": lambda: Before(
        lambda x: F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1) / 9
    ),
    "left_product": lambda: Around(LeftProduct()),
    "pixel_shuffle": lambda: Around(nn.PixelShuffle(2), 1),
    "pixel_unshuffle": lambda: Around(nn.PixelUnshuffle(2), 4 * C),
    "zero_pad": lambda: Around(nn.ZeroPad2d((1, 2, 0, 1))),
    "reflect_pad": lambda: Around(nn.ReflectionPad2d(1)),
    "replicate_pad": lambda: Around(lambda x: F.pad(x, (1, 1, 1, 1), "replicate")),
    "pad_value": lambda: Before(lambda x: F.pad(x, (1, 0, 2, 1), value=-0.7)),
    "constant_pad_value": lambda: Around(nn.ConstantPad2d((1, 0, 2, 1), 0.5)),
    "negative_pad": lambda: Around(lambda x: F.pad(x, (-1, -1, 0, 0))),
    "constant_pad": lambda: Around(nn.ConstantPad2d(1, 0.0)),
    "blur": lambda: Around(blur),
    "blur_pool": lambda: Around(BlurPool()),
    "group_norm": lambda: Around(mod(conv(), nn.GroupNorm(2, C), nn.ReLU(), nn.GroupNorm(1, C))),
    "group_norm_before": lambda: Before(lambda x: F.group_norm(x, 2)),
    "group_norm_concat": lambda: Before(
        mod(Lambda(lambda x: torch.cat([x, 2 - x], 1)), nn.GroupNorm(4, 2 * C)), 2 * C
    ),
    "instance_norm": lambda: Before(
        mod(nn.InstanceNorm2d(C), nn.InstanceNorm2d(C, affine=True, track_running_stats=True))
    ),
    "layer_norm": lambda: Around(
        mod(conv(), Lambda(lambda x: x.permute(0, 2, 3, 1)), nn.LayerNorm(C), Lambda(last_to_first))
    ),
    "rms_norm": lambda: Before(lambda x: F.rms_norm(x, x.shape[1:])),
    "local_response_norm": lambda: Around(mod(conv(), nn.ReLU(), nn.LocalResponseNorm(3, 2.0))),
    "squeeze_excite": lambda: Around(Squeeze()),
    "hard_squeeze_excite": lambda: Around(Squeeze(F.hardsigmoid)),
    "linear_squeeze_excite": lambda: Around(LinearSqueeze()),
    "linear_gate": lambda: Around(Squeeze(lambda x: x)),
    "star": lambda: Around(Star()),
    "written_relu": lambda: Around(mod(conv(), Lambda(lambda x: x * (x > 0)))),
    "written_leaky": lambda: Around(mod(conv(), Lambda(lambda x: torch.where(x > 0, x, 0.1 * x)))),
    "added_product": lambda: Before(
        lambda x: torch.addcmul(x.flip(1), x, torch.sigmoid(x.mean(1, keepdim=True)), value=0.5)
    ),
    "interpolated": lambda: Around(
        lambda x: torch.lerp(x, x.flip(1), torch.sigmoid(x.mean((2, 3), keepdim=True)))
    ),
    "silu_gate": lambda: Around(lambda x: x * torch.sigmoid(1.7 * x)),
    "tanh_gate": lambda: Before(lambda x: torch.tanh(x) * x),
    "softmax_gate": lambda: Around(lambda x: x * F.softmax(x.mean((2, 3), keepdim=True), 1)),
    "gate_before": lambda: Before(Squeeze()),
    "eca": lambda: Around(ECA()),
    "spatial_gate": lambda: Around(SpatialGate()),
    "gated_residual": lambda: Around(Residual(mod(conv(), bn(), Squeeze()))),
    "scse": lambda: Around(Residual(SpatialGate())),
    "weight_parametrized": lambda: Around(standard_parametrized()),
    "weight_standard": lambda: Around(StandardConv(C, C, 3, padding=1)),
    "weight_norm": lambda: Around(parametrizations.weight_norm(conv())),
    "spectral_norm": lambda: Around(parametrizations.spectral_norm(conv())),
    "norm_act": lambda: Around(mod(conv(), NormAct())),
    "norm_act_inline": lambda: Around(mod(conv(), NormActInline(C))),
    "careless": lambda: Around(Careless()),
    "dropout": lambda: Around(lambda x: F.dropout(x, 0.3, True)),
    "dropout2d": lambda: Around(nn.Dropout2d(0.4)),
    "drop_path": lambda: Around(Residual(mod(conv(), DropPath()))),
    "noise": lambda: Around(lambda x: x + 0.1 * torch.randn_like(x)),
    "identity_latent": lambda: Around(mod(conv(), bn(), conv())),
    "shared": lambda: Shared(),
    "iadd": lambda: Around(Accumulate()),
}


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


def last_to_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


class Shared(nn.Module):
    """One block called three times, and one ReLU everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.relu = conv(inputs=3), mod(conv(), bn()), nn.ReLU(inplace=True)
        self.fc = nn.Linear(C, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        for _ in range(3):
            x = self.relu(self.block(x) + x)
        return self.fc(x.mean([-2, -1]))


class Accumulate(nn.Module):
    """In-place sums in several spellings."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y += x
        y *= 0.5
        z = self.b(F.relu_(y))
        z -= x
        return z.add_(x, alpha=0.5)
