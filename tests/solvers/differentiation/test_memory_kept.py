"""These tests check what each mode keeps, and what none of them disturbs."""

from __future__ import annotations

import copy
import gc
import itertools
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pursuitify as package
from pursuitify import PursuitNetwork, load, pursuitify, save
from pursuitify.models import ResidualNet
from pursuitify.solvers.differentiation.tensor_extraction import holes, put_in, take_out
from tests.support.nets import BY_NAME

MODES: dict[str, dict[str, Any]] = {
    "store": {"memory": "store"},
    "recompute": {"memory": "recompute"},
    "recompute-2": {"memory": "recompute", "recompute_levels": 2},
    "implicit": {"memory": "implicit"},
    "last": {"memory": "implicit", "implicit_last": 1},
}
every = pytest.mark.parametrize("mode", MODES)
solvers = pytest.mark.parametrize("solver", ["global", "synchronous", "layered"])


def network(mode: str, iterations: int = 10, width: int = 8) -> PursuitNetwork:
    torch.manual_seed(0)
    source = ResidualNet(in_channels=2, num_classes=3, width=width).train()
    return pursuitify(source, iterations=iterations, **MODES[mode])


def images(size: int = 16) -> Tensor:
    return torch.rand(8, 2, size, size, generator=torch.Generator().manual_seed(1))


def kept(model: nn.Module, x: Tensor) -> int:
    """Return the bytes that autograd keeps after a forward pass, parameters apart."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(x)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert out.requires_grad
    return sum(size for pointer, size in seen.items() if pointer not in own)


def alive() -> tuple[int, int]:
    """Return how many tensors there are, and the bytes they stand on."""
    gc.collect()
    found = [o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter)]
    return len(found), sum(t.untyped_storage().nbytes() for t in found)


def test_what_is_kept_is_what_was_promised() -> None:
    """In latents of one sweep, beside what the source keeps and a copy of folded weights."""
    x, sweeps = images(32), 10
    net = network("store", sweeps)
    own = kept(net.source, x)
    latents = sum(w.numel() * w.element_size() for w in net.latents(x).values())

    def size(mode: str, sweeps: int, extrapolation: bool = True) -> int:
        net = network(mode, sweeps)
        net.pursuit.alpha.requires_grad_(extrapolation)
        return kept(net, x)

    sizes = {mode: size(mode, sweeps) for mode in MODES}
    most = {"recompute": sweeps + 2, "recompute-2": 6, "implicit": 2.5}
    for mode, count in most.items():
        assert sizes[mode] <= own + count * latents, (mode, (sizes[mode] - own) / latents)
    order = ("store", "recompute", "recompute-2", "implicit")
    assert all(sizes[a] > 1.4 * sizes[b] for a, b in itertools.pairwise(order)), sizes
    assert size("store", sweeps, extrapolation=False) < sizes["store"]
    long = {mode: size(mode, 40) for mode in ("recompute", "recompute-2", "implicit")}
    assert long["implicit"] <= sizes["implicit"]
    assert long["recompute-2"] - sizes["recompute-2"] <= 8 * latents
    assert long["recompute"] - sizes["recompute"] == pytest.approx(30 * latents, rel=0.01)


@pytest.mark.parametrize("mode", ["recompute", "recompute-2", "implicit"])
def test_nothing_stays_behind(mode: str) -> None:
    """200 training steps: as many tensors and as many of their bytes as after the first few."""
    case = BY_NAME["linear_residual"]
    net, x = pursuitify(case.build().train(), iterations=2, **MODES[mode]), case.input(batch=4)
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-3)
    counts = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(200):
            optimiser.zero_grad()
            net(x).square().sum().backward()
            optimiser.step()
            if step in (20, 199):
                counts.append(alive())
    assert counts[0] == counts[1]


@every
def test_a_graph_that_is_dropped_is_freed(mode: str) -> None:
    net, x = network(mode, iterations=3), images(8)
    with torch.no_grad():
        net(x)
    gc.collect()
    before = sum(type(o) is Tensor for o in gc.get_objects())
    gc.disable()
    try:
        out = net(x)
        assert out.requires_grad
        del out
        assert sum(type(o) is Tensor for o in gc.get_objects()) <= before + 2
    finally:
        gc.enable()


@every
@pytest.mark.parametrize("recorded", [False, True])
def test_nothing_on_the_way_is_called_like_a_derivative(mode: str, recorded: bool) -> None:
    """AutoAttack counts frames named grad or backward and then refuses the model."""
    net, x = network(mode, iterations=3).eval(), images(8)
    home = str(Path(package.__file__).parent)
    seen: set[tuple[str, str]] = set()

    def profile(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            seen.add((frame.f_code.co_filename, frame.f_code.co_name))

    x.requires_grad_(recorded)
    with torch.set_grad_enabled(recorded):
        sys.setprofile(profile)
        try:
            net(x)
        finally:
            sys.setprofile(None)
    own = [name for file, name in seen if file.startswith((home, "<eval_with_key>"))]
    assert {"sweep", "descend"} & set(own)
    assert not [n for n in own if "grad" in n.lower() or "backward" in n.lower()]
    assert not [n for _, n in seen if n in ("grad", "backward", "_make_grads")]


@every
@solvers
def test_inference_is_that_of_store(mode: str, solver: str) -> None:
    net, x = network(mode, iterations=4).eval(), images(8)
    net.solver = solver
    with torch.no_grad():
        outputs = net(x)
        net.memory = "store"
        assert torch.equal(outputs, net(x))


@every
def test_copies_and_files_keep_the_mode(mode: str, tmp_path: Path) -> None:
    net, x = network(mode, iterations=2), images(8)
    keys = list(net.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net(x).sum().backward()
    net.zero_grad()
    assert list(net.state_dict()) == keys
    twin = copy.deepcopy(net)
    save(net, tmp_path / "net.safetensors")
    read = load(tmp_path / "net.safetensors", ResidualNet(2, 3, width=8))
    for other in (twin, read):
        assert other.settings() == net.settings()
        assert other.eval().state_dict().keys() == set(keys)
        assert torch.equal(other(x), net.eval()(x))


def test_the_seed_decides() -> None:
    found = []
    for _ in range(2):
        net = network("recompute", iterations=4)
        net.pursuit.alpha.requires_grad_()
        net(images()).square().sum().backward()
        found.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_taking_tensors_out_and_putting_them_back() -> None:
    case = BY_NAME["conv_dense"]
    net, x = pursuitify(case.build(1), iterations=2), case.input(batch=2)
    bound = net.dictionary(x)
    skeleton, tensors = take_out(bound)
    assert len({id(t) for t in tensors}) == len(tensors)
    assert holes(skeleton) == list(range(len(tensors)))
    assert take_out(skeleton)[1] == []
    again = put_in(skeleton, tensors)
    mine, theirs = again.signal, bound.signal
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)
    shared = again.branches[0].through[0][0] if again.branches[0].through else None
    paths = [p for row in again.rows for slot in row.slots for p in slot]
    assert shared is None or any(shared is m for p in paths for m in p.maps)


@every
def test_distributed_training_is_the_same(mode: str, tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("torch was built without it")
    net, x = network(mode, iterations=2), images(8)
    alone = copy.deepcopy(net)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(net, find_unused_parameters=mode == "last")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped(x).square().sum().backward()
            alone(x).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for (name, mine), theirs in zip(net.named_parameters(), alone.parameters(), strict=True):
        if theirs.grad is not None:
            assert torch.allclose(mine.grad, theirs.grad, rtol=1e-5, atol=1e-7), name
