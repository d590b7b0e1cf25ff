"""Whole architectures in small, written as repositories write them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.ops import ECA, BlurPool, DropPath, LinearSqueeze, NormAct, Squeeze, conv


class SEResidual(nn.Module):
    """SE-ResNet with stochastic depth and a blurred downsampling."""

    def __init__(self, gate: Callable[[], nn.Module] = LinearSqueeze) -> None:
        super().__init__()
        self.stem, self.bn, self.relu = conv(inputs=3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.body = nn.ModuleList(
            nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(), nn.BatchNorm2d(4))
            for _ in range(2)
        )
        self.gates = nn.ModuleList(gate() for _ in range(2))
        self.drop, self.blur, self.fc = DropPath(0.2), BlurPool(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.stem(x)))
        for body, gate in zip(self.body, self.gates, strict=True):
            x = self.relu(self.drop(gate(body(x))) + x)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.blur(x), 1), 1))


class PreActivation(nn.Module):
    """Pre-activation ResNet, v2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(inputs=3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))
        self.convs = nn.ModuleList(conv() for _ in range(4))
        self.down, self.norm, self.fc = nn.Conv2d(4, 4, 1, 2), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in (0, 2):
            out = F.relu(self.norms[i](x))
            skip = self.down(out) if i else x
            out = self.convs[i](out if not i else F.max_pool2d(out, 2))
            out = self.convs[i + 1](F.relu(self.norms[i + 1](out)))
            x = out + skip
        return self.fc(F.relu(self.norm(x)).mean((2, 3)))


class UNet(nn.Module):
    """Encoder and decoder with skip concatenations, transposed convolution and padding."""

    def __init__(self, transposed: bool = True) -> None:
        super().__init__()
        self.inc, self.down1, self.down2 = self.stage(3, 4), self.stage(4, 6), self.stage(6, 6)
        self.up1: nn.Module = nn.ConvTranspose2d(6, 6, 2, 2)
        if not transposed:
            self.up1 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.up2 = nn.ConvTranspose2d(6, 4, 2, 2)
        self.conv1, self.conv2, self.out = self.stage(12, 6), self.stage(8, 4), nn.Conv2d(4, 2, 1)

    @staticmethod
    def stage(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True), nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(inplace=True),
        )  # fmt: skip

    @staticmethod
    def fit(x: Tensor, like: Tensor) -> Tensor:
        dy, dx = like.size()[2] - x.size()[2], like.size()[3] - x.size()[3]
        return F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])

    def forward(self, x: Tensor) -> Tensor:
        a = self.inc(x)
        b = self.down1(F.max_pool2d(a, 2))
        c = self.down2(F.max_pool2d(b, 2))
        y = self.conv1(torch.cat([b, self.fit(self.up1(c), b)], dim=1))
        return self.out(self.conv2(torch.cat([a, self.fit(self.up2(y), a)], dim=1)))


class Pyramid(nn.Module):
    """A feature pyramid that returns a dict of maps of several sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = conv(2, 3), conv(2), conv(2)
        self.lateral = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))
        self.smooth = nn.ModuleList(conv() for _ in range(3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = [F.relu(self.c1(x))]
        features.append(F.relu(self.c2(features[-1])))
        features.append(F.relu(self.c3(features[-1])))
        maps = [lateral(f) for lateral, f in zip(self.lateral, features, strict=True)]
        for i in (1, 0):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], size=maps[i].shape[-2:], mode="nearest")
        out = OrderedDict(
            (f"p{i}", F.relu(s(m))) for i, (s, m) in enumerate(zip(self.smooth, maps, strict=True))
        )
        out["pool"] = F.max_pool2d(out["p2"], 1, 2, 0)
        return out


class TwoInputs(nn.Module):
    """Image and vector; returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.out = conv(inputs=3), nn.Linear(5, 4), nn.Linear(8, 3)

    def forward(self, image: Tensor, vector: Tensor, scale: float = 0.5) -> tuple[Tensor, Any]:
        a = F.relu(self.conv(image)).mean((2, 3))
        b = F.relu(self.fc(vector.flatten(1)[:, :5])) * scale
        y = F.relu(self.out(torch.cat([a, b], 1)))
        return y, {"image": a, "vector": b}


class Shuffle(nn.Module):
    """A ShuffleNet unit: split, depthwise, concat, shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(inputs=3)
        self.branch = nn.Sequential(
            nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU(inplace=True),
            nn.Conv2d(2, 2, 3, padding=1, groups=2), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1),
            nn.BatchNorm2d(2), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for _ in range(2):
            a, b = x.chunk(2, 1)
            x = torch.cat((a, self.branch(b)), 1)
            n, c, h, w = x.size()
            x = x.view(n, 2, torch.div(c, 2, rounding_mode="floor") if False else c // 2, h, w)
            x = torch.transpose(x, 1, 2).contiguous().view(n, -1, h, w)
        return self.fc(x.mean([2, 3]))


class Inverted(nn.Module):
    """Inverted residuals with linear bottlenecks, squeeze and ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(2, 3, 4, bias=False), nn.BatchNorm2d(4), nn.ReLU6(True))
        self.blocks = nn.ModuleList(self.block(i) for i in range(3))
        self.head = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU6(True))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 3))

    @staticmethod
    def block(i: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(True),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(True),
            nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4),
            *([Squeeze(F.hardsigmoid)] * (i == 1)),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.classifier(F.adaptive_avg_pool2d(self.head(x), 1).flatten(1))


class Dense(nn.Module):
    """Dense connections over a list of features, with a transition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norms = (
            conv(inputs=3),
            nn.ModuleList(nn.BatchNorm2d(4 + 2 * i) for i in range(3)),
        )
        self.layers = nn.ModuleList(nn.Conv2d(4 + 2 * i, 2, 3, padding=1) for i in range(3))
        self.transition = nn.Sequential(
            nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 4, 1), nn.AvgPool2d(2)
        )
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        return self.fc(F.relu(self.transition(torch.cat(features, 1))).mean((2, 3)))


class VideoNet(nn.Module):
    """conv3d, (2+1)d, pooling in three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 4, (3, 3, 3), (1, 2, 2), 1, bias=False)
        self.bn, self.relu = nn.BatchNorm3d(4), nn.ReLU(inplace=True)
        self.space, self.time = (
            nn.Conv3d(4, 5, (1, 3, 3), padding=(0, 1, 1)),
            nn.Conv3d(5, 4, (3, 1, 1), padding=(1, 0, 0)),
        )
        self.pool, self.fc = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn(self.stem(x))))
        x = self.relu(self.time(self.space(x)) + x)
        return self.fc(F.avg_pool3d(x, (1, 2, 2)).mean((2, 3, 4)))


class Sequence(nn.Module):
    """A temporal convolution network on sequences: causal padding, chomp, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 4, 3, padding=4, dilation=2), nn.Conv1d(4, 4, 3, dilation=2)
        self.skip, self.bn = nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.a(x)[:, :, :-4]))
        y = self.b(F.pad(y, (4, 0)))
        return F.relu(y + self.skip(x)).permute(0, 2, 1)


class Perceptron(nn.Module):
    """Vectors: BatchNorm1d on features, skip from the input, F.linear by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.bn, self.fc2 = nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.weight = nn.Parameter(0.4 * torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.fc1(x)))
        y = F.relu(self.fc2(y) + x)
        return F.relu(y @ self.weight)


class NormActNet(nn.Module):
    """Composite layers everywhere: conv with BatchNorm and activation in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv(inputs=3), NormAct(), conv(2), NormAct(), ECA(), conv())

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x))


IMAGE = ((3, 8, 8),)
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "se_resnet": (SEResidual, IMAGE),
    "eca_resnet": (lambda: SEResidual(ECA), IMAGE),
    "preact": (PreActivation, IMAGE),
    "unet": (UNet, IMAGE),
    "unet_bilinear": (lambda: UNet(False), IMAGE),
    "pyramid": (Pyramid, IMAGE),
    "two_inputs": (TwoInputs, ((3, 8, 8), (5,))),
    "shuffle": (Shuffle, IMAGE),
    "inverted": (Inverted, IMAGE),
    "dense": (Dense, IMAGE),
    "video": (VideoNet, ((3, 4, 8, 8),)),
    "sequence": (Sequence, ((3, 12),)),
    "perceptron": (Perceptron, ((3,),)),
    "norm_act": (NormActNet, IMAGE),
}
