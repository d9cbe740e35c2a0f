"""Equivariant networks: they turn with the molecule, tell mirror images apart, and sum over pairs correctly."""

import pytest
import torch
from torch import nn

from molsamp.engine import Noise
from molsamp.learn.equivariant import Equivariant, build_equivariant
from molsamp.learn.networks import count
from molsamp.learn.pairs import AllPairs, Neighbours, Radial, vector_harmonics
from molsamp.learn.tensor_product import TensorProduct

ATOMS, WIDTHS = 7, (6, 6)
KINDS, HEADS = ("painn", "e3nn"), ("force", "scale", "potential")
every_network = pytest.mark.parametrize("kind", KINDS)
every_head = pytest.mark.parametrize("head", HEADS)
REFERENCE = 0.15 * Noise(1).normal(0, torch.arange(ATOMS), (3,))
D = 0.05 * Noise(2).normal(0, torch.arange(5), (ATOMS, 3))
T = Noise(2).uniform(1, torch.arange(5))


def rotations(n: int) -> torch.Tensor:
    """(n, 3, 3) proper rotations: orthogonal parts of normal matrices, turned inside out where they reflect."""
    Q, _ = torch.linalg.qr(Noise(3).normal(0, torch.arange(n), (3, 3)))
    return Q * torch.linalg.det(Q).sign()[:, None, None]


def stirred(net: nn.Module, dtype=torch.float64) -> nn.Module:
    """The network with its zero layers given weights, so that it answers."""
    for k, p in enumerate(net.parameters()):
        if not p.detach().any():
            p.data = 0.5 * Noise(4).normal(k, torch.arange(1), tuple(p.shape))[0]
    return net.to(dtype)


def network(kind, head, reference=REFERENCE, dtype=torch.float64) -> Equivariant:
    """A small one, every weight at work."""
    return stirred(build_equivariant(kind, reference, head, WIDTHS, True, Noise(5)), dtype)


def turned(answer: torch.Tensor, head: str, G: torch.Tensor) -> torch.Tensor:
    """The answer as the head transforms under G."""
    return answer @ G.T if head == "force" else answer


@every_network
@every_head
def test_turning_molecule_and_target_turns_the_answer(kind, head):
    """f(G y, G y_B) = G f(y, y_B) to 1e-10 for 20 rotations and their mirror images (energies do not see mirrors)."""
    base = network(kind, head)(D, T)
    assert float(base.detach().abs().max()) > 1e-3
    for G in (*rotations(10), *-rotations(10)):
        answer = network(kind, head, REFERENCE @ G.T)(D @ G.T, T)
        assert torch.allclose(answer, turned(base, head, G), atol=1e-10 * float(base.detach().abs().max() + 1))


@every_network
@every_head
def test_the_mirror_image_alone_is_another_molecule(kind, head):
    """y mirrored in a plane, the target kept: the answer is not the mirrored one."""
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    net = network(kind, head)
    answer = net((REFERENCE + D) @ mirror - REFERENCE, T)
    assert float((answer - turned(net(D, T), head, mirror)).detach().abs().max()) > 1e-2


@every_network
@pytest.mark.parametrize("lmax", [1, 2])
def test_higher_harmonics_turn_too(kind, lmax):
    """The tensor-product backbone up to rank 2; PaiNN has rank 1 alone and stands as the control."""
    backbone = TensorProduct(6, 2, 12, lmax) if kind == "e3nn" else network(kind, "force").backbone
    G = rotations(1)[0]
    answers = []
    for H in (torch.eye(3, dtype=torch.float64), G):
        net = stirred(Equivariant(backbone, REFERENCE @ H.T, "force", 6, False, Noise(5)))
        answers.append(net(D @ H.T, T).detach())
    assert torch.allclose(answers[0] @ G.T, answers[1], atol=1e-10)
    assert float(answers[0].abs().max()) > 1e-3


@every_network
@every_head
def test_untrained_is_zero_and_trainable(kind, head):
    """The answer is exactly zero, its gradient is not; shapes by head."""
    net = build_equivariant(kind, REFERENCE, head, WIDTHS, True, Noise(5)).double()
    answer = net(D, T)
    assert answer.shape == {"force": (5, ATOMS, 3), "scale": (5, ATOMS), "potential": (5,)}[head]
    assert not answer.detach().any()
    answer.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in net.readout.parameters())


@every_network
def test_weights_are_keyed_and_few(kind):
    a, b = network(kind, "force"), network(kind, "force")
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    other = build_equivariant(kind, REFERENCE, "force", WIDTHS, True, Noise(6))
    assert not torch.equal(a.atoms.weight, other.atoms.weight.double())
    assert count(a) < 2500


@every_network
def test_single_precision_agrees_with_double(kind):
    """To 1e-5 of the largest answer."""
    exact = network(kind, "force")(D, T).detach()
    single = network(kind, "force", dtype=torch.float32)(D.float(), T.float())
    assert single.dtype == torch.float32
    assert float((single.detach().double() - exact).abs().max() / exact.abs().max()) < 1e-5


@every_network
def test_the_time_is_seen_only_when_asked_for(kind):
    seeing = network(kind, "force")
    blind = stirred(build_equivariant(kind, REFERENCE, "force", WIDTHS, False, Noise(5)))
    assert not torch.allclose(seeing(D, T), seeing(D, T + 0.5))
    assert torch.equal(blind(D, T), blind(D, T + 0.5))


@every_network
def test_a_frame_does_not_feel_its_batch(kind):
    """130 frames pass in three blocks; each answers as it does alone, and a NaN frame stays alone."""
    d = 0.05 * Noise(7).normal(0, torch.arange(130), (ATOMS, 3))
    t = torch.zeros(130, dtype=torch.float64)
    net = network(kind, "force")
    clean = net(d, t).detach()
    for k in (0, 64, 129):
        assert torch.allclose(clean[k], net(d[k : k + 1], t[:1])[0], atol=1e-12)
    d[65, 2, 1] = torch.nan
    spoilt = net(d, t).detach()
    assert spoilt[65].isnan().any()
    others = torch.arange(130) != 65
    assert torch.equal(spoilt[others], clean[others])


@every_network
def test_atoms_are_labelled(kind):
    """Exchanging two atoms, in y and y_B alike, is not the same as exchanging their answers."""
    swap = [1, 0, *range(2, ATOMS)]
    exchanged = network(kind, "force", REFERENCE[swap])(D[:, swap], T)
    assert not torch.allclose(exchanged, network(kind, "force")(D, T)[:, swap])


@every_network
def test_second_derivatives_are_right(kind):
    """The gradient of the scalar trains the network, so it is differentiated again: gradgradcheck at one frame."""
    net = network(kind, "potential")
    d = D[:1].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda a: net(a, T[:1]), (d,))
    assert torch.autograd.gradgradcheck(lambda a: net(a, T[:1]), (d,))


def test_widths_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"widths \(8, 16\) of a painn network must all be the same"):
        build_equivariant("painn", REFERENCE, "force", (8, 16), False, Noise(0))


# -------------------------------------------------------------------- sums over pairs


@pytest.mark.parametrize("cutoff, near_share", [(0.25, (0.2, 0.8)), (1.2, (1.0, 1.0))], ids=["some", "all"])
@pytest.mark.parametrize("l", [0, 1, 2])
def test_both_sums_over_pairs_are_the_double_loop(l, cutoff, near_share):
    """The matrix product, the radius graph and two Python loops, with some or with all pairs within the cutoff."""
    y = REFERENCE + D
    radial = Radial(cutoff, 5).double()
    harmonics = TensorProduct.harmonics if l == 2 else vector_harmonics
    x = Noise(8).normal(0, torch.arange(5), (ATOMS, 4))
    w = Noise(8).normal(1, torch.arange(4), (5,))
    slow = torch.zeros(5, ATOMS, 2 * l + 1, 4, dtype=torch.float64)
    near = 0
    for n in range(5):
        for i in range(ATOMS):
            for j in set(range(ATOMS)) - {i}:
                r = y[n, i] - y[n, j]
                length = r.norm()
                near += int(length < cutoff)
                slow[n, i] += harmonics(l, r / length)[:, None] * (w @ radial(length)) * x[n, j]
    least, most = near_share
    assert least <= near / (5 * ATOMS * (ATOMS - 1)) <= most
    for pairs in (AllPairs, Neighbours):
        assert torch.allclose(pairs(y, radial, harmonics).sum(l, x, w), slow, atol=1e-12)


def test_more_frames_than_one_search_handles():
    """Edges of frame 70 join atoms of frame 70."""
    y = REFERENCE + 0.05 * Noise(9).normal(0, torch.arange(80), (ATOMS, 3))
    radial = Radial(0.25, 5).double()
    x = torch.ones(80, ATOMS, 1, dtype=torch.float64)
    w = torch.ones(1, 5, dtype=torch.float64)
    sums = [pairs(y, radial, vector_harmonics).sum(1, x, w) for pairs in (AllPairs, Neighbours)]
    assert torch.allclose(*sums, atol=1e-12)


def test_the_basis_ends_smoothly_at_the_cutoff():
    """Value and slope vanish there, and a larger molecule, on the radius graph, feels no jump when a pair enters."""
    radial = Radial(0.5, 12).double()
    r = torch.tensor([0.3, 0.5 - 1e-7, 0.5, 0.7], dtype=torch.float64, requires_grad=True)
    e = radial(r)
    (slope,) = torch.autograd.grad(e.sum(), r)
    assert float(e[0].max().detach()) > 0.3
    assert float(e[1:].detach().abs().max()) < 1e-12 and float(slope[1:].abs().max()) < 1e-4


@every_network
def test_a_larger_molecule_goes_over_the_radius_graph(kind):
    """31 atoms: the same network with all pairs at the same cutoff gives the same answer."""
    reference = 0.3 * Noise(10).normal(0, torch.arange(31), (3,))
    net = network(kind, "force", reference)
    assert net.pairs is Neighbours
    d = 0.02 * Noise(11).normal(0, torch.arange(2), (31, 3))
    sparse = net(d, T[:2])
    net.pairs = AllPairs
    assert torch.allclose(sparse, net(d, T[:2]), atol=1e-11)
