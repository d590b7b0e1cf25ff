"""The paper's reference networks (7.1), and a densely connected one, for any input.

All have 3 blocks of ``depth`` units of two 3x3 convolutions with ``width``, 2 ``width`` and
4 ``width`` filters, a ReLU after each, then average pooling and a linear classifier. A chain and a
residual network of the same depth and width have the same parameters, key for key.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pursuitify.errors import OptionError

BLOCKS = 3


def _check(
    in_channels: int, num_classes: int, depth: int, width: int, batch_norm: bool, pool: int
) -> None:
    """Refuse arguments that no network can be built from."""
    numbers = {
        "in_channels": in_channels,
        "num_classes": num_classes,
        "depth": depth,
        "width": width,
        "pool": pool,
    }
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise OptionError(f"{name} must be an integer, not {value!r}")
        if value < 1:
            raise OptionError(f"{name} must be at least 1, not {value}")
    if not isinstance(batch_norm, bool):
        raise OptionError(f"batch_norm must be True or False, not {batch_norm!r}")


class Unit(nn.Module):
    """Two 3x3 convolutions, each followed by BatchNorm (if asked for) and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, batch_norm: bool) -> None:
        """Make the layers; the first convolution has the stride."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=not batch_norm)
        self.norm1 = nn.BatchNorm2d(outputs) if batch_norm else nn.Identity()
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=not batch_norm)
        self.norm2 = nn.BatchNorm2d(outputs) if batch_norm else nn.Identity()
        self.relu2 = nn.ReLU()

    def inner(self, x: Tensor) -> Tensor:
        """Return the second convolution's pre-activation."""
        out: Tensor = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output."""
        out: Tensor = self.relu2(self.inner(x))
        return out


class ResidualUnit(Unit):
    """A unit whose input is added to its second convolution's pre-activation.

    The skip has no parameters: where the unit halves the image the input is average pooled, where
    it adds channels they are zero. A unit with fewer channels than its input, which only the first
    can be, has no skip.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, batch_norm: bool) -> None:
        """Make the layers and settle the skip."""
        super().__init__(inputs, outputs, stride, batch_norm)
        self.stride = stride
        self.extra = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output."""
        inner = self.inner(x)
        out: Tensor = self.relu2(inner + self.skip(x) if self.extra >= 0 else inner)
        return out

    def skip(self, x: Tensor) -> Tensor:
        """Return the input in the shape of the output."""
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        if self.extra > 0:
            x = F.pad(x, (0, 0, 0, 0, 0, self.extra))
        return x


class DenseBlock(nn.Module):
    """Units that each read the concatenation of all former units' outputs.

    The first unit reads the block's input (and halves it, if asked to), the block returns the
    concatenation of all its units' outputs.
    """

    def __init__(self, inputs: int, width: int, depth: int, stride: int, batch_norm: bool) -> None:
        """Make the units."""
        super().__init__()
        self.units = nn.ModuleList(
            Unit(width * n if n else inputs, width, 1 if n else stride, batch_norm)
            for n in range(depth)
        )
        self.out_channels = width * depth

    def forward(self, x: Tensor) -> Tensor:
        """Return all units' outputs side by side."""
        outputs: list[Tensor] = []
        for unit in self.units:
            read = x if not outputs else outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
            outputs.append(unit(read))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


class _Classifier(nn.Module):
    """The base of the reference networks: blocks, pooling to ``pool`` x ``pool``, classifier."""

    def __init__(self, blocks: list[nn.Module], channels: int, num_classes: int, pool: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(pool)
        self.classifier_features = channels * pool * pool
        self.classifier = nn.Linear(self.classifier_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (batch, num_classes), of images (batch, in_channels, H, W)."""
        out: Tensor = self.classifier(torch.flatten(self.pool(self.blocks(x)), 1))
        return out


def _stacked(
    unit: type[Unit], in_channels: int, depth: int, width: int, batch_norm: bool
) -> list[nn.Module]:
    """Return three blocks of units one after the other; blocks 2 and 3 halve the image."""
    blocks: list[nn.Module] = []
    inputs = in_channels
    for number in range(BLOCKS):
        outputs = width * 2**number
        units = []
        for n in range(depth):
            units.append(unit(inputs, outputs, 2 if number and not n else 1, batch_norm))
            inputs = outputs
        blocks.append(nn.Sequential(*units))
    return blocks


class ChainNet(_Classifier):
    """The paper's chain network: convolutions one after the other."""

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        *,
        depth: int = 1,
        width: int = 8,
        batch_norm: bool = True,
        pool: int = 1,
    ) -> None:
        """Make the network.

        Args:
            in_channels: Channels of the image.
            num_classes: Number of logits.
            depth: Units per block, the paper's n.
            width: Filters in the first block, the paper's m.
            batch_norm: Whether a BatchNorm follows each convolution (which then has no bias).
            pool: Side to which the last features are averaged before the classifier. 1 is global
                average pooling and 4 ``width`` features; 2 gives the 16 ``width`` that the paper
                states.

        Raises:
            OptionError: If an argument is not of its type or below 1.
        """
        _check(in_channels, num_classes, depth, width, batch_norm, pool)
        blocks = _stacked(Unit, in_channels, depth, width, batch_norm)
        super().__init__(blocks, 4 * width, num_classes, pool)


class ResidualNet(_Classifier):
    """The paper's residual network: a chain with parameter-free skips around its units."""

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        *,
        depth: int = 1,
        width: int = 8,
        batch_norm: bool = True,
        pool: int = 1,
    ) -> None:
        """Make the network; for the arguments see ``ChainNet``.

        Args:
            in_channels: Channels of the image. If they exceed ``width``, the first unit has no
                skip.
            num_classes: Number of logits.
            depth: Units per block.
            width: Filters in the first block.
            batch_norm: Whether a BatchNorm follows each convolution.
            pool: Side to which the last features are averaged.

        Raises:
            OptionError: If an argument is not of its type or below 1.
        """
        _check(in_channels, num_classes, depth, width, batch_norm, pool)
        blocks = _stacked(ResidualUnit, in_channels, depth, width, batch_norm)
        super().__init__(blocks, 4 * width, num_classes, pool)


class DenselyConnectedNet(_Classifier):
    """A network of dense blocks: each unit reads all former units' outputs of its block."""

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        *,
        depth: int = 2,
        width: int = 8,
        batch_norm: bool = True,
        pool: int = 1,
    ) -> None:
        """Make the network; for the arguments see ``ChainNet``.

        Args:
            in_channels: Channels of the image.
            num_classes: Number of logits.
            depth: Units per block; the classifier reads 4 ``width`` ``depth`` channels.
            width: Filters of each convolution in the first block.
            batch_norm: Whether a BatchNorm follows each convolution.
            pool: Side to which the last features are averaged.

        Raises:
            OptionError: If an argument is not of its type or below 1.
        """
        _check(in_channels, num_classes, depth, width, batch_norm, pool)
        blocks: list[nn.Module] = []
        channels = in_channels
        for number in range(BLOCKS):
            stride = 2 if number else 1
            block = DenseBlock(channels, width * 2**number, depth, stride, batch_norm)
            blocks.append(block)
            channels = block.out_channels
        super().__init__(blocks, channels, num_classes, pool)
