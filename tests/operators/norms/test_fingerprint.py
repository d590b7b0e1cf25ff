"""The signature of kernels: same contents, same signature, whatever wrote them."""

from __future__ import annotations

import torch

from pursuitify.operators import kernel_contents


def test_any_change_is_seen_and_undoing_it_too() -> None:
    weights = [torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)]
    weights += [torch.randn(5, 7), torch.randn(2, 2, 1)]
    before = kernel_contents(weights)
    assert kernel_contents([w.clone() for w in weights]) == before
    for weight in weights:
        for place in range(weight.numel()):
            flat = weight.data.view(-1) if weight.is_contiguous() else weight.permute(0, 2, 3, 1)
            entry = flat.reshape(-1)[place].clone()
            index = torch.unravel_index(torch.tensor(place), flat.shape)
            flat[index] = entry + 1e-2
            assert kernel_contents(weights) != before
            flat[index] = entry
    assert kernel_contents(weights) == before
    weights[1][[0, 1]] = weights[1][[1, 0]]
    assert kernel_contents(weights) != before
    assert kernel_contents(weights[:1]) != kernel_contents([weights[0].double()])


def test_two_steps_of_a_row_swapped() -> None:
    weight = torch.randn(3, 10)
    before = kernel_contents([weight])
    weight[:, [2, 5]] = weight[:, [5, 2]]
    assert kernel_contents([weight]) != before
