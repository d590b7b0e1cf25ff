"""Whole architectures in small, written as repositories write them."""

from __future__ import annotations

import math
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


class EdgeConv(nn.Module):
    """DGCNN: of every point its neighbours, nearest in the features of this pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2))
        self.second = nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2))
        self.fc = nn.Linear(8, 3)

    def edges(self, x: Tensor) -> Tensor:
        batch, width, count = x.size()
        inner = -2 * torch.matmul(x.transpose(2, 1), x)
        squares = torch.sum(x**2, dim=1, keepdim=True)
        near = (-squares - inner - squares.transpose(2, 1)).topk(k=3, dim=-1)[1]
        near = (near + torch.arange(0, batch, device=x.device).view(-1, 1, 1) * count).view(-1)
        x = x.transpose(2, 1).contiguous()
        found = x.view(batch * count, -1)[near, :].view(batch, count, 3, width)
        x = x.view(batch, count, 1, width).repeat(1, 1, 3, 1)
        return torch.cat((found - x, x), dim=3).permute(0, 3, 1, 2).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        one = self.first(self.edges(x)).max(dim=-1, keepdim=False)[0]
        two = self.second(self.edges(one)).max(dim=-1)[0]
        return self.fc(F.adaptive_max_pool1d(torch.cat((one, two), dim=1), 1).squeeze(-1))


class SegNet(nn.Module):
    """Encoder and decoder by the indices of the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv(inputs=3), conv(out=5)])
        self.up = nn.ModuleList([conv(inputs=5, out=4), conv(out=2)])
        self.pool, self.unpool = nn.MaxPool2d(2, 2, return_indices=True), nn.MaxUnpool2d(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for layer in self.down:
            x = F.relu(layer(x))
            size = x.size()
            x, where = self.pool(x)
            kept.append((where, size))
        for layer in self.up:
            where, size = kept.pop()
            x = layer(F.relu(self.unpool(x, where, output_size=size)))
        return x


class Fuse(nn.Module):
    """HRNet: two resolutions, each with the other in its own size; activations in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.high, self.low = conv(inputs=3), conv(2, inputs=3, out=6)
        self.down = nn.Sequential(conv(2, out=6), nn.BatchNorm2d(6))
        self.up = nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4))
        self.acts, self.fc = [nn.ReLU(), nn.ReLU(inplace=True)], nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, two = (
            act(layer(x)) for act, layer in zip(self.acts, (self.high, self.low), strict=True)
        )
        height, width = one.shape[-2:]
        grown = F.interpolate(self.up(two), size=[height, width], mode="bilinear")
        fused = [self.acts[0](one + grown), self.acts[1](self.down(one) + two)]
        return self.fc(torch.cat([nn.AdaptiveAvgPool2d(1)(f).flatten(1) for f in fused], -1))


class PyramidPooling(nn.Module):
    """PSPNet and ASPP: pooled and dilated branches, each back to the size of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = conv(2, inputs=3), nn.Conv2d(14, 2, 1)
        self.pooled = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d((n, n)), nn.Conv2d(4, 2, 1)) for n in (1, 2, 3)
        )
        self.dilated = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 2, 3, padding=d, dilation=d), nn.ReLU()) for d in (1, 2)
        )

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        size = x.shape[-2:]
        x = F.relu(self.stem(x))
        h, w = x.size(2), x.size(3)
        found = [F.interpolate(input=p(x), size=(h, w), mode="bilinear") for p in self.pooled]
        found += [branch(x) for branch in self.dilated]
        x = self.out(F.relu(torch.cat([*found, x], dim=1)))
        return OrderedDict(out=F.interpolate(x, size=size, mode="bilinear", align_corners=False))


class ChannelAndSpace(nn.Module):
    """CBAM: a gate of pooled channels, then one of places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.fc = conv(inputs=3), conv(), nn.Linear(4, 3)
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4))
        self.places = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        total = None
        for pool in (F.avg_pool2d, F.max_pool2d):
            found = self.mlp(pool(x, (x.size(2), x.size(3)), stride=(x.size(2), x.size(3))))
            total = found if total is None else total + found
        x = x * torch.sigmoid(total).unsqueeze(2).unsqueeze(3).expand_as(x)
        both = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return self.fc(F.relu(self.last(x * torch.sigmoid(self.places(both)))).mean((-1, -2)))


class WaveNet(nn.Module):
    """Dilated causal convolutions; skips as long as the last of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 4, 1)
        self.layers = nn.ModuleList(nn.Conv1d(4, 4, 2, dilation=2**i) for i in range(3))
        self.residual = nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in range(3))
        self.skip, self.out = (
            nn.ModuleList(nn.Conv1d(4, 5, 1) for _ in range(3)),
            nn.Conv1d(5, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.stem(x), []
        for layer, residual, skip in zip(self.layers, self.residual, self.skip, strict=True):
            y = F.relu(layer(x))
            skips.append(skip(y))
            x = residual(y) + x[:, :, -y.size(2) :]
        total = sum(skip[:, :, -x.size(2) :] for skip in skips)
        return self.out(F.relu(total))


class Reversible(nn.Module):
    """RevNet: halves that add functions of each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = conv(inputs=3), nn.Linear(4, 3)
        self.f, self.g = (
            nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1))
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        one, two = torch.chunk(self.stem(x), 2, dim=1)
        one = one + self.f(two)
        two = two + self.g(one)
        return self.fc(F.relu(torch.cat([one, two], dim=1)).mean(3).mean(2))


class Patches(nn.Module):
    """An MLP-Mixer with ReLU on patches, cut as einops does it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Linear(12, 5), nn.Linear(5, 3)
        self.norm, self.norm2 = nn.LayerNorm(5), nn.LayerNorm(5)
        self.mix = nn.Conv1d(1, 1, 3, padding=1)
        self.widen, self.narrow = nn.Linear(5, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1)
        x = self.embed(x.reshape(b, (h // 2) * (w // 2), 2 * 2 * c))
        y = self.norm(x).transpose(1, 2).flatten(0, 1).unsqueeze(1)
        y = F.relu(self.mix(y)).squeeze(1).unflatten(0, (b, 5)).transpose(1, 2)
        x = x + y
        return self.fc(F.relu(x + self.narrow(F.relu(self.widen(self.norm2(x))))).mean(dim=1))


class Coordinates(nn.Module):
    """CoordConv, and a spatial pyramid of windows by size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(5, 4, 3, padding=1), nn.Linear(4 * 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.size()
        rows = torch.arange(h, dtype=x.dtype).view(1, 1, h, 1) / (h - 1) + x.new_zeros(b, 1, h, w)
        columns = torch.arange(w, dtype=x.dtype).view(1, 1, 1, w) / (w - 1) + x.new_zeros(
            b, 1, h, w
        )
        x = F.relu(self.conv(torch.cat([x, rows, columns], 1)))
        found = []
        for n in (1, 2):
            size = (math.ceil(h / n), math.ceil(w / n))
            pads = ((size[0] * n - h + 1) // 2, (size[1] * n - w + 1) // 2)
            found.append(F.max_pool2d(x, size, stride=size, padding=pads).view(x.size(0), -1))
        return self.fc(torch.cat(found, 1))


class SuperResolution(nn.Module):
    """ESPCN and DnCNN: what is missing is subtracted, channels become pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(inputs=3), conv(), conv(out=12)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        noise = self.shuffle(self.c(F.relu(self.b(F.relu(self.a(x))))))
        return torch.clamp_(F.interpolate(x, scale_factor=2, mode="bicubic") - noise, 0.0, 1.0)


class Highway(nn.Module):
    """Highway layers, and a weighted mean over time by attention of one query."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv1d(3, 4, 1), nn.Linear(4, 3)
        self.plain, self.gates = (
            nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in range(2)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for plain, gate in zip(self.plain, self.gates, strict=True):
            share = torch.sigmoid(gate(x))
            x = share * F.relu(plain(x)) + (1 - share) * x
        averages = x.cumsum(2) / torch.arange(1, x.size(2) + 1, device=x.device)
        return self.fc(F.relu(averages.diff(dim=2).amax(2)))


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
    "edge_conv": (EdgeConv, ((3, 7),)),
    "segnet": (SegNet, IMAGE),
    "fuse": (Fuse, IMAGE),
    "pyramid_pooling": (PyramidPooling, IMAGE),
    "channel_and_space": (ChannelAndSpace, IMAGE),
    "wavenet": (WaveNet, ((3, 12),)),
    "reversible": (Reversible, IMAGE),
    "patches": (Patches, IMAGE),
    "coordinates": (Coordinates, IMAGE),
    "super_resolution": (SuperResolution, IMAGE),
    "highway": (Highway, ((3, 6),)),
}
#: Those whose operations others have as well: they are tried with the slow tests.
MORE = {"pyramid_pooling", "channel_and_space", "wavenet", "coordinates", "super_resolution"}
