"""The networks that other libraries construct, and what a conversion makes of each.

A network is examined in a child process, so that one that kills its process costs itself alone.
``sweep`` runs the children and yields one ``Result`` per network; ``examine`` is what they do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import json
import os
import queue
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from pursuitify import PursuitifyError, PursuitNetwork, explain, pursuitify
from pursuitify.compiler.tracing.size_branches import EXAMPLE
from pursuitify.conversion.report import Report
from pursuitify.errors import InputError, Problem
from tests.support.agreement import error

LIBRARIES = ("timm", "segmentation_models_pytorch", "monai", "pytorchcv", "efficientnet_pytorch")
#: Larger networks are explained alone.
MOST_PARAMETERS = 150_000_000
#: Longest time for one network, in seconds.
LONGEST = 900.0
TOLERANCE = 1e-5
#: Sizes of the image, smallest first: the first at which the source itself runs in both modes.
SIZES = (32, 64, 128, 224, 256, 299, 480)
_MARK = "@examined "
#: Types of modules that put a network outside the ReLU family, by name: libraries have their own.
_FOREIGN = frozenset({
    "GELU", "GELUTanh", "GELU_", "QuickGELU", "QuickGELUCausal", "SiLU", "Swish",
    "MemoryEfficientSwish", "HSwish", "Hardswish", "HardSwish", "HardSwishMe", "HardSwishJit",
    "HardMish", "HardMishJit", "SwishMe", "SwishJit", "Mish", "SELU", "StarReLU", "SquaredReLU",
    "MultiheadAttention", "EvoNorm2dB0", "EvoNorm2dB1", "EvoNorm2dB2",
    "EvoNorm2dS0", "EvoNorm2dS0a", "EvoNorm2dS1", "EvoNorm2dS1a", "EvoNorm2dS2", "EvoNorm2dS2a",
    "FilterResponseNormAct2d", "FilterResponseNormTlu2d", "AttentionPool2d", "DropBlock3x3",
})  # fmt: skip


#: Operations that put a network outside the ReLU family where they are refused.
_FOREIGN_OPERATIONS = frozenset({
    "gelu", "silu", "mish", "hardswish", "softmax", "Softmax", "scaled_dot_product_attention",
})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Network:
    """One network of a library.

    Attributes:
        library: The library.
        family: The group of networks it belongs to.
        name: The name that ``build`` knows.
    """

    library: str
    family: str
    name: str


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one network.

    Attributes:
        network: The network.
        outcome: ``converted``, ``explained`` (it would convert), ``refused``, ``other family``
            (refused, with modules or operations outside the ReLU family, softmax among them),
            ``other family, not explained``, ``not examined``,
            ``not built``, ``too large`` or ``does not run`` (explained alone), or a fault:
            ``died``, ``untyped``, ``too long``, ``verify`` (a row does not hold), ``wrong``
            (T = 0 is not the source) or ``late`` (refused when called).
        detail: The reason of a refusal or fault.
        parameters: Number of parameters.
        seconds: Time of the examination.
    """

    network: Network
    outcome: str
    detail: str = ""
    parameters: int = 0
    seconds: float = 0.0


#: The outcome of a network outside the ReLU family that was counted alone.
COUNTED = "other family, not explained"
#: The outcome of a network that was only listed: no module puts it outside the ReLU family.
LISTED = "not examined"
FAULTS = frozenset({"died", "untyped", "too long", "verify", "wrong", "late"})


def _timm() -> list[Network]:
    timm = importlib.import_module("timm")
    found = []
    for family in timm.list_modules():
        names = timm.list_models(module=family)
        found += [Network("timm", family, name) for name in names]
        found += [Network("timm", family, f"{name}+checkpointing") for name in names[:1]]
    return found


def _smp() -> list[Network]:
    smp = importlib.import_module("segmentation_models_pytorch")
    decoders = [d.__name__ for d in smp.MODEL_ARCHITECTURES_MAPPING.values()]
    encoders = ("resnet18", "resnext50_32x4d", "dpn68", "vgg11", "vgg11_bn", "se_resnet50",
                "densenet121", "inceptionresnetv2", "inceptionv4", "mobilenet_v2", "xception",
                "timm-tf_efficientnet_lite0", "timm-skresnet18", "mobileone_s0", "mit_b0",
                "efficientnet-b0", "tu-resnet18", "tu-regnetx_002", "tu-hrnet_w18_small",
               )  # fmt: skip
    plain = [f"{d}/{e}" for e in encoders for d in decoders if e in encoders[:1] or d == "Unet"]
    more = ["Unet/resnet18/scse", "UnetPlusPlus/resnet34/scse", "Unet/resnet34/classes",
            "DeepLabV3Plus/mobilenet_v2", "FPN/densenet121", "PAN/resnet50", "MAnet/mobilenet_v2",
            "Linknet/vgg11_bn", "PSPNet/se_resnet50", "Unet/resnet18/interpolated"]  # fmt: skip
    return [
        Network("segmentation_models_pytorch", n.split("/")[0], n)
        for n in dict.fromkeys(plain + more)
    ]


_UNET: dict[str, Any] = {
    "in_channels": 1, "out_channels": 2, "channels": (8, 16, 32), "strides": (2, 2),
}  # fmt: skip
_AUTO: dict[str, Any] = {**_UNET, "strides": (2, 2, 2)}
_IN_SHAPE: dict[str, Any] = {"in_shape": (1, 64, 64), "channels": (8, 16), "strides": (2, 2)}
_DYN: dict[str, Any] = {
    "in_channels": 1, "out_channels": 2, "kernel_size": [3, 3, 3], "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
}  # fmt: skip
_BATCH: dict[str, Any] = {"norm": "batch"}
#: MONAI's networks: name, class, options, shape of one sample (0: any of ``SIZES``).
_MONAI: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "UNet": ("UNet", {"spatial_dims": 2, **_UNET, **_BATCH}, (1, 0, 0)),
    "UNet-residual": (
        "UNet", {"spatial_dims": 2, **_UNET, "num_res_units": 2, **_BATCH}, (1, 0, 0)),
    "UNet-3d": ("UNet", {"spatial_dims": 3, **_UNET, "act": "relu", **_BATCH}, (1, 16, 16, 16)),
    "UNet-instance": ("UNet", {"spatial_dims": 2, **_UNET}, (1, 0, 0)),
    "BasicUNet": ("BasicUNet", {"spatial_dims": 2, **_BATCH}, (1, 0, 0)),
    "BasicUNet-3d": ("BasicUNet", {"spatial_dims": 3, **_BATCH}, (1, 16, 16, 16)),
    "BasicUNet-nontrainable": (
        "BasicUNet", {"spatial_dims": 2, "upsample": "nontrainable", **_BATCH}, (1, 0, 0)),
    "BasicUNet-pixelshuffle": (
        "BasicUNet", {"spatial_dims": 2, "upsample": "pixelshuffle", **_BATCH}, (1, 0, 0)),
    "BasicUNetPlusPlus": ("BasicUNetPlusPlus", {"spatial_dims": 2, **_BATCH}, (1, 0, 0)),
    "AttentionUnet": ("AttentionUnet", {"spatial_dims": 2, **_UNET}, (1, 0, 0)),
    "AutoEncoder": ("AutoEncoder", {"spatial_dims": 2, **_AUTO, **_BATCH}, (1, 0, 0)),
    "AutoEncoder-inter": (
        "AutoEncoder",
        {"spatial_dims": 2, **_AUTO, "inter_channels": [8, 8], "num_res_units": 1, **_BATCH},
        (1, 0, 0),
    ),
    "VarAutoEncoder": (
        "VarAutoEncoder",
        {"spatial_dims": 2, "in_shape": (1, 32, 32), "out_channels": 1, "latent_size": 4,
         "channels": (8, 16), "strides": (2, 2), "use_mean_at_inference": True, **_BATCH},
        (1, 32, 32),
    ),
    "Classifier": ("Classifier", {**_IN_SHAPE, "classes": 3, **_BATCH}, (1, 64, 64)),
    "Critic": ("Critic", {**_IN_SHAPE, **_BATCH}, (1, 64, 64)),
    "Discriminator": ("Discriminator", {**_IN_SHAPE, **_BATCH}, (1, 64, 64)),
    "Generator": (
        "Generator",
        {"latent_shape": (6,), "start_shape": (4, 8, 8), "channels": (8, 4), "strides": (2, 2),
         **_BATCH},
        (6,),
    ),
    "Regressor": ("Regressor", {**_IN_SHAPE, "out_shape": (2, 2), **_BATCH}, (1, 64, 64)),
    "FullyConnectedNet": (
        "FullyConnectedNet",
        {"in_channels": 8, "out_channels": 3, "hidden_channels": [8, 16], "dropout": 0.1}, (8,)),
    "VarFullyConnectedNet": (
        "VarFullyConnectedNet",
        {"in_channels": 8, "out_channels": 3, "latent_size": 2, "encode_channels": [8],
         "decode_channels": [8], "use_mean_at_inference": True},
        (8,),
    ),
    "DenseNet121": (
        "DenseNet121", {"spatial_dims": 2, "in_channels": 1, "out_channels": 3}, (1, 0, 0)),
    "DenseNet121-3d": (
        "DenseNet121", {"spatial_dims": 3, "in_channels": 1, "out_channels": 3}, (1, 32, 32, 32)),
    "DynUNet": ("DynUNet", {"spatial_dims": 2, **_DYN, "norm_name": "batch"}, (1, 0, 0)),
    "DynUNet-residual": (
        "DynUNet",
        {"spatial_dims": 2, **_DYN, "norm_name": "batch", "res_block": True}, (1, 0, 0)),
    "DynUNet-deep": (
        "DynUNet",
        {"spatial_dims": 2, **_DYN, "kernel_size": [3] * 4, "strides": [1, 2, 2, 2],
         "upsample_kernel_size": [2] * 3, "norm_name": "batch", "deep_supervision": True},
        (1, 0, 0),
    ),
    "DynUNet-instance": ("DynUNet", {"spatial_dims": 2, **_DYN}, (1, 0, 0)),
    "FlexibleUNet-resnet18": (
        "FlexibleUNet", {"in_channels": 3, "out_channels": 2, "backbone": "resnet18"}, (3, 0, 0)),
    "FlexibleUNet-efficientnet": (
        "FlexibleUNet",
        {"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0"}, (3, 0, 0)),
    "HighResNet": ("HighResNet", {"spatial_dims": 2}, (1, 32, 32)),
    "HighResNet-3d": ("HighResNet", {"spatial_dims": 3}, (1, 12, 12, 12)),
    "HoVerNet": ("HoVerNet", {"mode": "fast"}, (3, 256, 256)),
    "HoVerNet-classes": ("HoVerNet", {"mode": "fast", "out_classes": 3}, (3, 256, 256)),
    "AHNet": ("AHNet", {"spatial_dims": 2, "psp_block_num": 0}, (1, 0, 0)),
    "AHNet-psp": ("AHNet", {"spatial_dims": 2, "upsample_mode": "bilinear"}, (1, 0, 0)),
    "DAF3D": ("DAF3D", {"in_channels": 1, "out_channels": 1}, (1, 32, 32, 32)),
    "GlobalNet": (
        "GlobalNet",
        {"image_size": [32, 32], "spatial_dims": 2, "in_channels": 2, "num_channel_initial": 4,
         "depth": 2},
        (2, 32, 32),
    ),
    "LocalNet": (
        "LocalNet",
        {"spatial_dims": 2, "in_channels": 2, "num_channel_initial": 4, "extract_levels": (0, 1),
         "out_channels": 2},
        (2, 32, 32),
    ),
    "RegUNet": (
        "RegUNet",
        {"spatial_dims": 2, "in_channels": 2, "num_channel_initial": 4, "depth": 2,
         "out_channels": 2},
        (2, 32, 32),
    ),
    "MILModel-mean": (
        "MILModel", {"num_classes": 2, "mil_mode": "mean", "pretrained": False}, (2, 3, 64, 64)),
    "MILModel-max": (
        "MILModel", {"num_classes": 2, "mil_mode": "max", "pretrained": False}, (2, 3, 64, 64)),
    "PatchDiscriminator": (
        "PatchDiscriminator", {"spatial_dims": 2, "channels": 8, "in_channels": 1}, (1, 0, 0)),
    "MultiScalePatchDiscriminator": (
        "MultiScalePatchDiscriminator",
        {"num_d": 2, "num_layers_d": 3, "spatial_dims": 2, "channels": 8, "in_channels": 1,
         "minimum_size_im": 64},
        (1, 64, 64),
    ),
    "Quicknat": ("Quicknat", {"num_classes": 3, "num_filters": 8}, (1, 64, 64)),
    "ResNet18": (
        "ResNet",
        {"block": "basic", "layers": [2, 2, 2, 2], "block_inplanes": [16, 32, 64, 128],
         "spatial_dims": 2, "n_input_channels": 1, "num_classes": 3},
        (1, 0, 0),
    ),
    "ResNet18-shortcut-A": (
        "ResNet",
        {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [16, 32, 64, 128],
         "spatial_dims": 3, "n_input_channels": 1, "num_classes": 3, "shortcut_type": "A"},
        (1, 32, 32, 32),
    ),
    "ResNet50-3d": (
        "ResNet",
        {"block": "bottleneck", "layers": [3, 4, 6, 3], "block_inplanes": [16, 32, 64, 128],
         "n_input_channels": 1, "num_classes": 3},
        (1, 32, 32, 32),
    ),
    "ResNetFeatures": (
        "ResNetFeatures",
        {"model_name": "resnet18", "pretrained": False, "in_channels": 1}, (1, 32, 32, 32)),
    "SEResNet50": (
        "SEResNet50", {"spatial_dims": 2, "in_channels": 3, "num_classes": 3}, (3, 0, 0)),
    "SEResNext50": (
        "SEResNext50", {"spatial_dims": 2, "in_channels": 3, "num_classes": 3}, (3, 0, 0)),
    "SENet154": ("SENet154", {"spatial_dims": 2, "in_channels": 3, "num_classes": 3}, (3, 0, 0)),
    "SegResNet": ("SegResNet", {"spatial_dims": 2, "norm": "batch"}, (1, 0, 0)),
    "SegResNet-group": ("SegResNet", {"spatial_dims": 2}, (1, 0, 0)),
    "SegResNet-deconv": (
        "SegResNet", {"spatial_dims": 3, "norm": "batch", "upsample_mode": "deconv"},
        (1, 16, 16, 16)),
    "SegResNetDS": ("SegResNetDS", {"spatial_dims": 2, "init_filters": 8}, (1, 0, 0)),
    "SegResNetDS-deep": (
        "SegResNetDS", {"spatial_dims": 2, "init_filters": 8, "dsdepth": 2}, (1, 0, 0)),
    "SegResNetDS2": ("SegResNetDS2", {"spatial_dims": 2, "init_filters": 8}, (1, 0, 0)),
    "SegResNetVAE": (
        "SegResNetVAE", {"input_image_size": (64, 64), "spatial_dims": 2, "norm": "batch"},
        (1, 64, 64)),
    "TorchVisionFCModel": ("TorchVisionFCModel", {"num_classes": 3, "pool": None}, (3, 64, 64)),
    "VNet": ("VNet", {"spatial_dims": 2, "act": "relu"}, (1, 32, 32)),
    "VNet-elu": ("VNet", {"spatial_dims": 2}, (1, 32, 32)),
    "VoxelMorphUNet": (
        "VoxelMorphUNet",
        {"spatial_dims": 2, "in_channels": 2, "unet_out_channels": 4, "channels": (8, 8),
         "final_conv_channels": (4, 4)},
        (2, 32, 32),
    ),
    "EfficientNetBN": (
        "EfficientNetBN", {"model_name": "efficientnet-b0", "pretrained": False}, (3, 0, 0)),
    "VQVAE": (
        "VQVAE",
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": (8, 8),
         "num_res_layers": 1, "num_res_channels": (8, 8),
         "downsample_parameters": ((2, 4, 1, 1),) * 2,
         "upsample_parameters": ((2, 4, 1, 1, 0),) * 2, "num_embeddings": 4, "embedding_dim": 8},
        (1, 32, 32),
    ),
    "UNETR": ("UNETR", {"in_channels": 1, "out_channels": 2, "img_size": 32}, (1, 32, 32, 32)),
    "ViT": ("ViT", {"in_channels": 1, "img_size": (32, 32), "patch_size": (8, 8),
                    "spatial_dims": 2, "num_layers": 2}, (1, 32, 32)),
}  # fmt: skip


def _monai() -> list[Network]:
    return [Network("monai", name.split("-")[0], name) for name in _MONAI]


def _pytorchcv() -> list[Network]:
    provider = importlib.import_module("pytorchcv.model_provider")
    modules = {
        name: maker.__module__.rsplit(".", 1)[-1] for name, maker in provider._models.items()
    }
    return [Network("pytorchcv", module, name) for name, module in modules.items()]


def _efficientnet() -> list[Network]:
    names = ["efficientnet-b0", "efficientnet-b1", "efficientnet-b2", "efficientnet-b0/relu"]
    return [Network("efficientnet_pytorch", "efficientnet", name) for name in names]


def networks(library: str) -> list[Network]:
    """Return the networks of one library, family by family."""
    listed: dict[str, Callable[[], list[Network]]] = {
        "timm": _timm,
        "segmentation_models_pytorch": _smp,
        "monai": _monai,
        "pytorchcv": _pytorchcv,
        "efficientnet_pytorch": _efficientnet,
    }
    return sorted(listed[library](), key=lambda n: (n.family, n.name))


def build(network: Network) -> nn.Module:
    """Construct a network with random weights; nothing is downloaded.

    Of a library that is none of ``LIBRARIES``, the name is that of a function that makes it.
    A name of timm that ends in ``+checkpointing`` has ``set_grad_checkpointing(True)`` called.
    """
    name = network.name
    if network.library == "timm":
        timm = importlib.import_module("timm")
        plain, _, extra = name.partition("+")
        model: nn.Module = timm.create_model(plain, pretrained=False)
        if extra:
            model.set_grad_checkpointing(True)
        return model
    if network.library == "segmentation_models_pytorch":
        smp = importlib.import_module("segmentation_models_pytorch")
        decoder, encoder, *rest = name.split("/")
        options: dict[str, Any] = {"encoder_weights": None, "classes": 2}
        options |= {"decoder_attention_type": "scse"} if "scse" in rest else {}
        options |= {"decoder_interpolation": "bilinear"} if "interpolated" in rest else {}
        options |= {"aux_params": {"classes": 3}} if "classes" in rest else {}
        return getattr(smp, decoder)(encoder, **options)
    if network.library == "monai":
        kind, options, _ = _MONAI[name]
        return getattr(importlib.import_module("monai.networks.nets"), kind)(**options)
    if network.library == "pytorchcv":
        provider = importlib.import_module("pytorchcv.model_provider")
        known = inspect.signature(provider._models[name]).parameters
        options = {"pretrained_backbone": False} if "pretrained_backbone" in known else {}
        model = provider.get_model(name, pretrained=False, **options)
        pool = getattr(getattr(model, "features", None), "final_pool", None)
        if type(pool) is nn.AvgPool2d:  # of the size that is left of the native image
            model.features.final_pool = nn.AdaptiveAvgPool2d(1)
        return model
    if network.library == "efficientnet_pytorch":
        efficientnet = importlib.import_module("efficientnet_pytorch")
        plain, _, extra = name.partition("/")
        model = efficientnet.EfficientNet.from_name(plain)
        for module in model.modules() if extra else ():
            if hasattr(module, "_swish"):
                module._swish = nn.ReLU()
        return model
    return getattr(importlib.import_module(network.library), name)()


def shapes(network: Network, model: nn.Module) -> list[tuple[int, ...]]:
    """Return shapes of one sample to try, smallest first."""
    if network.library == "monai":
        shape = _MONAI[network.name][2]
        return [tuple(d or size for d in shape) for size in (SIZES if 0 in shape else SIZES[:1])]
    configured = getattr(model, "default_cfg", None) or {}
    native = configured.get("input_size") or (
        getattr(model, "in_channels", 3), *(getattr(model, "in_size", None) or ()),
    )  # fmt: skip
    channels = native[0] if isinstance(native[0], int) else 3
    sizes: list[tuple[int, ...]] = [(channels, size, size) for size in SIZES]
    return [*sizes, tuple(native)] if len(native) == 3 else sizes


def foreign(model: nn.Module) -> Counter[str]:
    """Count the modules that put a network outside the ReLU family, by type."""
    names = (type(module).__name__ for module in model.modules())
    return Counter(name for name in names if name in _FOREIGN)


def _meta(network: Network) -> nn.Module | None:
    """Construct a network without memory for its weights, if its constructor allows it."""
    try:
        with torch.device("meta"):
            return build(network)
    except Exception:  # whatever a constructor does to numbers that are not there
        return None


def runs(model: nn.Module, candidates: Sequence[tuple[int, ...]]) -> torch.Tensor | None:
    """Return the first input on which the source runs in both modes, or None."""
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        for shape in candidates:
            x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
            try:
                for training in (False, True):
                    model.train(training)
                    model(x)
            except Exception:  # whatever a source says to an image that is too small
                continue
            return x
        return None
    finally:
        model.load_state_dict(kept)
        model.eval()


def _reason(failure: PursuitifyError) -> str:
    problems = getattr(failure, "problems", ())
    if not problems:
        return str(failure).splitlines()[0][:300]
    counts = Counter((p.op, p.reason) for p in problems)
    return "; ".join(f"{op}: {why} x{n}"[:200] for (op, why), n in counts.most_common(4))


def examine(
    network: Network,
    prove: bool = True,
    others: bool = True,
    bounds: bool = True,
    listed_only: bool = False,
) -> Result:
    """Construct one network; convert it and prove it in both modes, or explain it.

    Args:
        network: The network.
        prove: Whether to convert what can be converted, and to run it.
        others: Whether to explain networks with modules outside the ReLU family; they are
            counted alone where this is false.
        bounds: Whether the sweep that is run takes steps by proven bounds of every operator's
            norm, which take half the time of an examination; adaptive steps if not.
        listed_only: Whether only to count the parameters and to say whether modules put the
            network outside the ReLU family.
    """
    small = _meta(network)
    try:
        model = small if small is not None else build(network)
    except Exception as failure:  # a constructor that fails here, or wants the internet
        return Result(network, "not built", f"{type(failure).__name__}: {failure}"[:200])
    count = sum(p.numel() for p in model.parameters())
    outside = foreign(model)

    def result(outcome: str, detail: str = "") -> Result:
        return Result(network, outcome, detail, count)

    def refused(problems: Sequence[Problem]) -> Result:
        found = outside or Counter(p.op for p in problems if p.op in _FOREIGN_OPERATIONS)
        if found:
            return result("other family", _names(found))
        return result("refused", _refusal(problems))

    if outside and not others:
        return result(COUNTED, _names(outside))
    if listed_only:
        return result(LISTED)
    try:
        if prove and not outside and count <= MOST_PARAMETERS:
            del model, small
            found = _converted(network, "certified" if bounds else "adaptive")
            return result(*found) if isinstance(found, tuple) else refused(found.problems)
        report = explain(model.eval())
        if not report.ok and not outside and EXAMPLE in str(report.problems):
            model = build(network)
            with torch.no_grad():
                x = runs(model, shapes(network, model))
            if x is not None:
                report = explain(model.eval(), example_inputs=x)
        if not report.ok:
            return refused(report.problems)
        return result("too large" if prove and not outside else "explained")
    except PursuitifyError as failure:
        return result("late", f"{type(failure).__name__}: {_reason(failure)}")
    except Exception as failure:  # the very thing that is looked for
        return result("untyped", f"{type(failure).__name__}: {failure}"[:400])


def _names(found: Counter[str]) -> str:
    return ", ".join(name for name, _ in found.most_common(3))


def _refusal(problems: Sequence[Problem]) -> str:
    """Return what is refused and why, most frequent first."""
    counts = Counter((p.op, p.reason) for p in problems)
    return "; ".join(f"{op}: {why}"[:300] for (op, why), _ in counts.most_common(4))


@torch.no_grad()
def _converted(network: Network, steps: str) -> tuple[str, str] | Report:
    """Convert and prove a network; return outcome and detail, or the report of its refusal."""
    torch.manual_seed(0)
    model = build(network).eval()
    x = runs(model, shapes(network, model))
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    options: dict[str, Any] = {}
    while True:
        try:
            net = pursuitify(model, iterations=1, verify="off", steps=steps, **options)
        except PursuitifyError:
            report = explain(model, **options)
            if report.ok:  # then the two do not agree, which is a fault
                raise
            guessed = x is not None and not options and EXAMPLE in str(report.problems)
            if not guessed:
                return report
        else:
            if x is None:
                return "does not run", ""
            try:
                outcome, detail = _proven(net, model, x)
                return outcome, detail or ", ".join(f"with {name}" for name in options)
            except InputError:  # its branches on sizes were guessed: the example decides them
                if options:
                    raise
        model.load_state_dict(kept)
        model.eval()
        options = {"example_inputs": x}


def _proven(net: PursuitNetwork, model: nn.Module, x: torch.Tensor) -> tuple[str, str]:
    for training in (False, True):
        mode = "train" if training else "eval"
        net.train(training)
        torch.manual_seed(7)
        proof = net.verify(x)
        if not proof.ok:
            return "verify", f"{mode}: {'; '.join(map(str, proof.problems[:2]))}"[:400]
        net.load_state_dict(model.state_dict())
        net.iterations = 0
        model.train(training)
        kept = {key: value.clone() for key, value in model.state_dict().items()}
        torch.manual_seed(7)
        expected = model(x)
        model.load_state_dict(kept)
        torch.manual_seed(7)
        gap = error(net(x), expected)
        if gap > TOLERANCE:
            return "wrong", f"{mode}: {gap:.1e}"
        net.load_state_dict(kept)
        if not training:
            net.iterations = 1
            net(x)
    return "converted", ""


def _child(options: dict[str, bool]) -> None:
    """Examine the networks named on stdin, one JSON line each."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for line in sys.stdin:
        network = Network(**json.loads(line))
        with contextlib.redirect_stdout(sys.stderr):
            began = os.times()
            found = examine(network, **options)
            ended = os.times()
        found = dataclasses.replace(found, seconds=round(ended.user - began.user, 2))
        print(_MARK + json.dumps(dataclasses.asdict(found)), flush=True)


class _Child:
    """One child process and its answers."""

    def __init__(self, options: dict[str, bool]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.libraries", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(_MARK):
                self.lines.put(line[len(_MARK) :])
        self.lines.put(None)

    def ask(self, network: Network, timeout: float) -> Result:
        """Return what became of one network; the child is gone after a fault of the process."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(dataclasses.asdict(network)) + "\n")
            self.process.stdin.flush()
        try:
            line = self.lines.get(timeout=timeout)
        except queue.Empty:
            self.close()
            return Result(network, "too long", f"more than {timeout:g} s")
        if line is None:
            return Result(network, "died", f"exit status {self.process.wait()}")
        answer = json.loads(line)
        return Result(**{**answer, "network": Network(**answer["network"])})

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def sweep(listed: Sequence[Network], per_child: int = 100, **options: bool) -> Iterator[Result]:
    """Examine networks in child processes, a new one after a death and every ``per_child``.

    The options are those of ``examine``.
    """
    child, asked = None, 0
    try:
        for network in listed:
            if child is None or asked >= per_child:
                if child is not None:
                    child.close()
                child, asked = _Child(options), 0
            found = child.ask(network, LONGEST)
            asked += 1
            yield found
            if found.outcome in {"died", "too long"}:
                child.close()
                child = None
    finally:
        if child is not None:
            child.close()


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
