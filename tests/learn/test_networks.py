"""Plain networks: weights are keyed, an untrained answer is zero, and state dicts survive flattening."""

import pytest
import torch

from molsamp.engine import Noise
from molsamp.learn.networks import MLP, count, flatten_state, seeded, with_prefix


def test_an_untrained_network_answers_zero_but_can_learn():
    net = MLP((3, 8, 8, 2), Noise(1))
    x = Noise(2).normal(0, torch.arange(5), (3,), torch.float32)
    assert torch.equal(net(x), torch.zeros(5, 2))
    (net(x) - 1.0).square().sum().backward()
    assert float(net[-1].weight.grad.abs().max()) > 0.0


def test_weights_are_a_function_of_the_key_alone():
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    a = MLP((3, 8, 2), Noise(1))
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator moved"
    torch.rand(7)
    b, c = MLP((3, 8, 2), Noise(1)), MLP((3, 8, 2), Noise(3))
    assert torch.equal(a[0].weight, b[0].weight) and not torch.equal(a[0].weight, c[0].weight)


def test_the_global_generator_comes_back_even_after_an_error():
    before = torch.random.get_rng_state()
    with pytest.raises(RuntimeError), seeded(Noise(1)):
        torch.rand(3)
        raise RuntimeError
    assert torch.equal(torch.random.get_rng_state(), before)


def test_count_leaves_out_what_is_not_trained():
    net = MLP((3, 8, 2), Noise(1))
    assert count(net) == 3 * 8 + 8 + 8 * 2 + 2
    net[0].bias.requires_grad_(False)
    assert count(net) == 3 * 8 + 8 * 2 + 2


def test_nested_state_comes_back_from_flat_keys():
    """Adam's state, with integer keys, nested one deep; the non-tensor entry is not for a checkpoint."""
    flat = flatten_state("optimiser", {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}, "note": "words"})
    assert set(flat) == {"optimiser.0.step", "optimiser.0.exp_avg"}
    assert set(with_prefix("optimiser", flat | {"optimiser2.x": torch.ones(1)})) == {"0.step", "0.exp_avg"}
