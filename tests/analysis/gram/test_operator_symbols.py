"""Every operation the library knows: its Gram entries are right, or it is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pursuitify import pursuitify
from pursuitify.analysis import coherence
from pursuitify.analysis.gram.dictionary_blocks import blocks_of
from pursuitify.analysis.gram.normalised_gram import Gram
from pursuitify.analysis.gram.symbol import UnsupportedError
from pursuitify.analysis.gram.worst_case_gram import WorstGram
from pursuitify.analysis.measures.bind_network import holds
from pursuitify.errors import InputError
from pursuitify.operators import LinearMap, Select
from pursuitify.rules import linear
from tests.support.dense_gram import dense_gram
from tests.support.ops import OPS, Around

#: What has no kernel form: interior mode refuses it, exact mode computes it entry by entry.
REFUSED = {
    "permute", "permute_linear", "transpose", "sum", "pixel_shuffle", "pixel_unshuffle",
    "silu_gate", "tanh_gate", "spatial_gate", "scse", "dropout", "layer_norm",
    "local_response_norm", "max_of_channels", "greater_of_two", "unpool", "left_product", "star",
    "added_product",
}  # fmt: skip


def prepared(name):
    torch.manual_seed(0)
    model = OPS[name]().double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
    return model, torch.randn(1, 3, 6, 6, dtype=torch.float64)


@pytest.mark.parametrize("name", OPS)
def test_entries_are_those_of_the_dense_matrix_or_refused(name):
    model, x = prepared(name)
    with torch.no_grad():
        dictionary = pursuitify(model).dictionary(x)
        pooled = holds(dictionary, Select)
        try:
            blocks = blocks_of(dictionary, True, worst=pooled)
        except UnsupportedError:
            blocks = None
        assert (blocks is None) == (name in REFUSED)
        if blocks is None:
            return
        found, structural = dense_gram((WorstGram if pooled else Gram)(blocks))
        matrix = dictionary.materialize()[0]
    norms = matrix.norm(dim=0)
    unit = matrix / norms.clamp_min(1e-300)
    wanted = unit.T @ unit
    both = (norms > 1e-8)[:, None] & (norms > 1e-8)
    assert not (wanted.abs() > 1e-12)[~structural & both].any()
    if pooled:
        wanted.fill_diagonal_(0)
        assert (wanted.abs() <= found.abs() + 1e-9)[both].all()
    else:
        assert (found - wanted)[both].abs().max() <= 1e-6


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_refused_says_so(name):
    model, x = prepared(name)
    net = pursuitify(model)
    with pytest.raises(InputError, match="no interior form"):
        coherence(net, x=x)
    report = coherence(net, x=x, boundary="exact")
    said = ("entry by entry", "switches as frozen by the input")
    assert any(text in a for a in report.assumptions for text in said)


class Twice(LinearMap):
    """A user's own map that looks as if it only moved elements: it doubles them."""

    def apply(self, x):
        return 2 * x

    def adjoint(self, y):
        return 2 * y

    def norm_bound(self):
        return 2.0


class Doubled(nn.Module):
    """What Twice is the map of."""

    def forward(self, x):
        return 2 * x


def test_a_users_own_map_is_not_taken_for_one_that_moves_elements():
    torch.manual_seed(0)
    model = Around(Doubled()).double().eval()

    net = pursuitify(model, rules={Doubled: linear(lambda _op, _x: Twice())})
    with pytest.raises(InputError, match="does more than move"):
        coherence(net, (3, 8, 8))
    assert coherence(net, (3, 8, 8), "exact").mutual_coherence > 0
