"""Controls on alanine dipeptide and on the double well: symmetry, heads, tangents, and the training job around them."""

import itertools
import math

import pytest
import torch

from molsamp.engine import Noise, centred
from molsamp.learn.fit import fit
from molsamp.molecular.geometry import aligned
from molsamp.molecular.paths.control import Control, Features
from molsamp.molecular.paths.learned import LearnedPaths
from molsamp.molecular.paths.networks import build_control
from molsamp.molecular.paths.problem import Problem
from molsamp.molecular.paths.settings import NetworkSettings
from molsamp.molecular.paths.target import Target
from molsamp.molecular.system import load

NETWORKS, HEADS = {"mlp": (12, 12), "painn": (4, 4), "e3nn": (4, 4)}, ("force", "scale", "potential")
every_control = pytest.mark.parametrize("kind, head", [*itertools.product(NETWORKS, HEADS)])
ALANINE, WELL = load("alanine-dipeptide"), load("double-well")
MOTIONS = 100


def problem(dtype=torch.float64, **kw) -> Problem:
    """Alanine dipeptide, C5 to C7ax."""
    return Problem.of(ALANINE, dtype=dtype, **kw)


def well(**kw) -> Problem:
    """The double well, 40 steps of 0.05."""
    return Problem.of(WELL, dtype=torch.float64, **{"steps": 40, "timestep": 0.05, **kw})


def stirred(control):
    """The control with its zero layers given weights, so that it answers."""
    for k, p in enumerate(control.parameters()):
        if not p.detach().any():
            p.data = 0.5 * Noise(4).normal(k, torch.arange(1), tuple(p.shape), torch.float64)[0].to(p)
    return control


def control_of(kind, head, dtype=torch.float64):
    """One of the nine, a function of time too, every weight at work."""
    settings = NetworkSettings(kind=kind, head=head, widths=NETWORKS[kind], time=True)
    return stirred(build_control(problem(dtype), settings, Noise(5))).eval()


def frames(n: int = 2, dtype=torch.float64) -> torch.Tensor:
    """Configurations about the start state, 0.01 nm from it in every coordinate."""
    start = ALANINE.states["C5"].x
    return (start + 0.01 * Noise(6).normal(0, torch.arange(n), tuple(start.shape))).to(dtype)


def rotations(n: int) -> torch.Tensor:
    """(n, 3, 3) proper rotations: orthogonal parts of normal matrices, turned inside out where they reflect."""
    Q, _ = torch.linalg.qr(Noise(3).normal(0, torch.arange(n), (3, 3)))
    return Q * torch.linalg.det(Q).sign()[:, None, None]


# -------------------------------------------------------------------- symmetry (card 12.7)


@every_control
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["float64", "float32"])
def test_the_control_moves_with_the_molecule(kind, head, dtype, bound):
    """b(G x + c) = G b(x) for 100 rigid motions, to the bound relative to the largest component of b."""
    control, x = control_of(kind, head, dtype), frames(1, dtype)
    G = rotations(MOTIONS).to(dtype)
    shift = Noise(7).normal(0, torch.arange(MOTIONS), (3,), torch.float64).to(dtype)
    u = control.drive(0.3, x, None)
    moved = control.drive(0.3, x @ G.mT + shift[:, None], None)
    size = float(u.abs().max())
    assert size > 1e-4
    assert float((moved - u @ G.mT).abs().max()) < bound * size


@pytest.mark.parametrize("time", [True, False])
def test_the_compiled_drive_is_the_plain_one(time):
    control = stirred(build_control(problem(), NetworkSettings(time=time), Noise(5))).eval()
    x = frames(9) @ rotations(9)
    plain = Control.drive(control, 0.3, x, None)
    assert plain.abs().max() > 0.01
    assert torch.allclose(control.drive(0.3, x, None), plain, atol=1e-12)


@every_control
def test_a_mirror_image_is_driven_otherwise(kind, head):
    """b(P x) is not P b(x): the target keeps its hand."""
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    control, x = control_of(kind, head), frames(1)
    u = control.drive(0.3, x, None)
    assert float((control.drive(0.3, x @ mirror, None) - u @ mirror).abs().max()) > 0.1 * float(u.abs().max())


@every_control
def test_the_centre_of_mass_is_left_alone(kind, head):
    """sum sqrt(m) u = 0, u in noise units."""
    u = control_of(kind, head).drive(0.3, frames(), None)
    momentum = torch.einsum("nai,a->ni", u, ALANINE.masses.sqrt())
    assert float(momentum.abs().max()) < 1e-12


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_potential_head_is_a_gradient(kind):
    """-scale times central differences of the network's scalar after superposition, centred, to 1e-7 relative."""
    control, x = control_of(kind, "potential"), frames(1)
    end, heavy = ALANINE.states["C7ax"].x, ALANINE.heavy
    e = 1e-5 * torch.eye(66, dtype=torch.float64).view(66, 22, 3)
    t = torch.full((66,), 0.3 / control.horizon, dtype=torch.float64)

    def scalar(frames):
        return control.network(aligned(frames, end, heavy) - end, t).detach()

    slope = (scalar(x + e) - scalar(x - e)).view(1, 22, 3) / 2e-5
    expected = centred(-control.scale * slope, ALANINE.masses[:, None])
    u = control.drive(0.3, x, None)
    assert float((u - expected).abs().max()) < 1e-7 * float(u.abs().max())


@pytest.mark.parametrize("kind", NETWORKS)
def test_untrained_controls(kind):
    """Force and potential heads do nothing; the scale head pulls every atom by ln 2 times its way, 0.1 nm as unit."""
    x = frames()
    for head in HEADS:
        control = build_control(problem(), NetworkSettings(kind=kind, head=head, widths=NETWORKS[kind]), Noise(5))
        u = control.drive(0.0, x, None)
        if head != "scale":
            assert not u.any()
            continue
        encoding = control.encode(0.0, x, None)
        way = (control.end - encoding["y"]) @ encoding["R"] / 0.1
        expected = centred(control.scale * math.log(2.0) * way, ALANINE.masses[:, None])
        assert torch.allclose(u, expected, atol=1e-12)


def test_the_body_frame_is_the_superposed_one():
    """y of an encoding, and `turn`, against plain Kabsch; a toy has no frame."""
    control, x = control_of("mlp", "force"), frames()
    encoding = control.encode(0.3, x, None)
    assert torch.allclose(encoding["y"], aligned(x, control.end, ALANINE.heavy), atol=1e-12)
    a = Noise(8).normal(0, torch.arange(2), (22, 3))
    assert torch.allclose(control.turn(encoding, a) @ encoding["R"], a, atol=1e-12)
    toy = build_control(well(), NetworkSettings(), Noise(5))
    points = torch.tensor([[0.1, 0.2], [0.3, -0.4]], dtype=torch.float64)
    assert set(toy.encode(0.0, points, None)) == {"y", "t"} and torch.equal(toy.encode(0.0, points, None)["y"], points)


def test_features_are_displacements_and_their_lengths():
    """4 an atom, the time last; 3 for a point in the plane."""
    assert Features.inputs((22, 3), False) == 88 and Features.inputs((2,), True) == 4
    seen = Features(torch.nn.Identity(), 0.1, True, (4,))
    row = seen(torch.tensor([[0.3, 0.4]]), torch.tensor([0.7]))
    assert torch.allclose(row, torch.tensor([[3.0, 4.0, 5.0, 0.7]]))


# -------------------------------------------------------------------- tangent directions


@pytest.fixture(scope="module")
def tangents():
    return stirred(build_control(problem(), NetworkSettings(head="torsion", scale=0.3, widths=(8,)), Noise(5)))


def test_tangents_are_unit_and_move_no_rigid_body(tangents):
    """|d_c| = 1, no momentum sum sqrt(m) d, no angular momentum sum r x sqrt(m) d."""
    x, root = frames(3), ALANINE.masses.sqrt()[:, None]
    d = tangents.directions(x)
    assert d.shape == (3, 4, 22, 3)
    assert torch.allclose(d.flatten(2).norm(dim=-1), torch.ones(3, 4, dtype=torch.float64), atol=1e-12)
    p = root * d
    assert float(p.sum(2).abs().max()) < 1e-12
    spin = torch.linalg.cross(x[:, None].expand_as(p), p).sum(2)
    assert float(spin.abs().max()) < 1e-12


def test_every_bond_that_can_turn_has_a_tangent(tangents):
    """phi and psi as the system names them, then both peptide bonds; not the methyl groups."""
    assert [cv.atoms for cv in tangents.torsions] == [(4, 6, 8, 14), (6, 8, 14, 16), (1, 4, 6, 8), (8, 14, 16, 18)]
    assert [int(side.sum()) for side in tangents.sides] == [14, 8, 16, 6]


def test_what_a_torsion_control_sees(tangents):
    """Sines, cosines, w = sqrt(m / kT) v along the directions as 4 tanh(w / 4), t / T."""
    x, v = frames(3), Noise(9).normal(0, torch.arange(3), (22, 3))
    angles = torch.cat([cv(x) for cv in tangents.torsions], 1)
    root = (ALANINE.masses / ALANINE.kT).sqrt()[:, None]
    speed = (tangents.directions(x) * (root * v)[:, None]).sum((2, 3))
    expected = torch.cat(
        [angles.sin(), angles.cos(), 4.0 * torch.tanh(speed / 4.0), torch.full((3, 1), 0.3, dtype=torch.float64)], 1
    )
    assert torch.allclose(tangents.encode(0.3 * tangents.horizon, x, v)["s"], expected, atol=1e-12)


def test_a_tangent_turns_its_torsion_and_nothing_else(tangents):
    """Along x + e d_c / sqrt(m), by central differences: torsion c moves, the other torsions and all bonds do not.

    The rate is that of the rigid turn from which d_c is made: 1 / |sqrt(m) (field - rigid part)|, about 3 rad for a
    unit step in sqrt(Da) nm; here it is found again from the turn itself, one side rotated by Rodrigues' formula.
    """
    x, root = frames(1), ALANINE.masses.sqrt()[:, None]
    d, h = tangents.directions(x)[0], 1e-5
    bonds = torch.tensor([[b[0].index, b[1].index] for b in ALANINE.topology.bonds()])

    def values(y):
        return torch.cat([cv(y) for cv in tangents.torsions], 1)

    def internal(y):
        lengths = (y[:, bonds[:, 0]] - y[:, bonds[:, 1]]).norm(dim=-1)
        return values(y), lengths

    for c in range(4):
        (up, far), (down, near) = internal(x + h * d[c] / root), internal(x - h * d[c] / root)
        rate = (up - down)[0] / (2 * h)
        others = torch.arange(4) != c
        assert float(rate[others].abs().max()) < 1e-6 and float((far - near).abs().max()) / (2 * h) < 1e-6
        i, j = tangents.atoms[c, 1:3]
        axis = torch.nn.functional.normalize(x[0, j] - x[0, i], dim=0)
        arm, side = x[0] - x[0, j], torch.as_tensor(tangents.sides[c])[:, None].double()
        turn = side * (arm * (math.cos(h) - 1) + torch.linalg.cross(axis.expand_as(arm), arm) * math.sin(h))
        turn = turn + side * axis * (arm @ axis)[:, None] * (1 - math.cos(h))
        moved = (values(x + turn) - values(x))[0]
        assert float(moved[c]) == pytest.approx(h, rel=1e-4), "the field turns the torsion by the angle itself"
        raw = root * turn / h
        assert float(rate[c]) == pytest.approx(1.0 / float((raw * d[c]).sum()), rel=1e-4)


def test_the_torsion_control_turns_with_the_molecule_and_stops_at_the_end(tangents):
    """Velocities turn with positions; inside the end state nothing is done."""
    x, v = frames(2), Noise(9).normal(0, torch.arange(2), (22, 3))
    G = rotations(2)
    u = tangents.drive(0.3, x, v)
    assert float(u.abs().max()) > 1e-4
    assert torch.allclose(tangents.drive(0.3, x @ G.mT + 0.5, v @ G.mT), u @ G.mT, atol=1e-10)
    end = ALANINE.states["C7ax"].x.expand(1, 22, 3)
    assert not tangents.drive(0.3, end, v[:1]).any()


# -------------------------------------------------------------------- settings that cannot be


def test_impossible_networks_are_refused():
    """Each by one line that names the setting or the system."""
    cases = [
        (problem(), {"kind": "painn", "head": "torsion"}, "network.kind = 'mlp', not 'painn'"),
        (well(), {"kind": "e3nn"}, "needs a molecule; double-well is a toy"),
        (well(), {"head": "torsion"}, "needs a molecule; double-well is a toy"),
        (problem(), {"kind": "painn", "widths": (8, 16)}, "must all be the same"),
    ]
    for case, settings, words in cases:
        with pytest.raises(ValueError, match=words):
            build_control(case, NetworkSettings(**settings), Noise(5))


# -------------------------------------------------------------------- the training job

SMALL = {"rollouts": 4, "samples": 16, "gradient_steps": 5, "batch": 16, "buffer": 40, "hold": 5, "validation": 8}
SMALL |= {"heat_share": 0.5, "network": {"widths": (12, 12), "scale": 1.0}, "target": {"sigma": 0.3}}
LOSSES = ("log-variance", "cross-entropy", "relative-entropy", "trust-region")
VARIATES = [(loss, variate) for loss in ("log-variance", "trust-region") for variate in ("global", "zero")]


def job(**kw) -> LearnedPaths:
    """A tiny training run on the double well."""
    return LearnedPaths(well(), noise=Noise(21), n=8, **{**SMALL, **kw})


@pytest.mark.parametrize("kind, head", [*itertools.product(NETWORKS, HEADS), ("mlp", "torsion")])
def test_stored_paths_weigh_what_they_weighed_when_drawn(kind, head):
    """log dP_u/dP_0 from the ring, in the body frame at block starts, is the one summed along the way; hot noise too.

    And every weight of the network has a gradient there.
    """
    network = {"kind": kind, "head": head, "widths": NETWORKS[kind], "time": True, "scale": 0.3}
    learner = LearnedPaths(problem(steps=20), noise=Noise(22), hold=10, rollouts=1, network=network)
    stirred(learner.control)
    path = learner.run(2, Noise(23), heat=2.0)
    items = learner._items(path)
    learner.control.train()
    log_rn = learner.log_rn(items)
    assert float(path.log_ratio.abs().max()) > 1e-3
    assert torch.allclose(log_rn.detach(), path.log_ratio, rtol=1e-9, atol=1e-10)
    log_rn.sum().backward()
    blind = [name for name, p in learner.control.named_parameters() if p.grad is None or not p.grad.any()]
    last = [name for name, _ in learner.control.named_parameters()][-1]  # a constant, to which a gradient is blind
    assert blind == ([last] if head == "potential" else [])


@pytest.mark.parametrize("loss", LOSSES)
def test_an_interrupted_job_goes_on_bit_for_bit(loss):
    """Two units, a checkpoint, two more units in a new object: every tensor equals that of four units in a row."""
    whole, half, rest = (job(loss=loss, control_variate="global") for _ in range(3))
    for _ in range(4):
        whole.advance()
    for _ in range(2):
        half.advance()
    saved = half.state()
    half.advance()  # a checkpoint must not share memory with the job that goes on
    rest.load(saved)
    for _ in range(2):
        rest.advance()
    a, b = whole.state(), rest.state()
    assert set(a) == set(b) and {"ring.items.z", "kept0.network.network.0.weight", "optimiser.0.exp_avg"} <= set(a)
    assert [k for k in a if k != "cpu" and not torch.equal(a[k], b[k])] == []
    first, second = whole.paths(), rest.paths()
    assert torch.equal(first.path.x, second.path.x) and torch.equal(first.log_rn, second.log_rn)


@pytest.mark.parametrize("loss, variate", [(loss, "local") for loss in LOSSES] + VARIATES)
def test_each_loss_falls_on_a_frozen_batch(loss, variate):
    """20 small steps on all stored paths, goals and baselines frozen before the first."""
    learner = job(loss=loss, control_variate=variate, learning_rate=1e-3)
    learner.advance()
    learner.control.train()
    batch = learner.ring.take(torch.arange(len(learner.ring)))
    baseline = (learner.log_rn(batch) - learner._stored_reward(batch["reward"])).detach()
    frozen = batch | ({"old": learner._freeze_policy()} if loss == "trust-region" else {})

    def value() -> float:
        if loss == "relative-entropy":  # its value means nothing, but with f frozen its slope is that of the KL
            return float(((baseline - baseline.mean()) * learner.log_rn(batch)).mean().detach())
        return float(learner._loss(dict(frozen)).detach())

    before = value()
    assert fit(learner._loss, lambda k: dict(frozen), learner.optimiser, steps=20).skipped == 0
    assert value() < before


def test_loss_scale_scales_the_loss_and_reward_scale_the_reward():
    """And only those: same paths, same control."""
    plain, scaled, rewarded = job(), job(loss_scale=0.1), job(target={"sigma": 0.3, "reward_scale": 7.0})
    items = plain._items(plain.run(8, Noise(24)))
    assert float(scaled._loss(dict(items)).detach()) == pytest.approx(0.1 * float(plain._loss(dict(items)).detach()))
    assert torch.allclose(rewarded._stored_reward(items["reward"]), 7.0 * plain._stored_reward(items["reward"]))


def test_the_targets_of_one_frame():
    """On the double well, 0.2 and 0.9 from B (radius 0.5): the centre is d, the basin what d exceeds the radius by."""
    x = well().end.x + torch.tensor([[[0.2, 0.0]], [[0.0, 0.9]]], dtype=torch.float64)
    for kind, expected in {"centre": (0.2, 0.9), "basin": (0.0, 0.4)}.items():
        rho = Target(well(), kind, 0.1).frames(x)[:, 0]
        assert torch.allclose(rho, -50.0 * torch.tensor(expected, dtype=torch.float64) ** 2)


def test_the_noise_cools_down_and_the_target_narrows():
    """Linear in temperature, geometric in width, both done after `heat_share` of the rollouts."""
    learner = job(rollouts=10, heat_start=3.0, target={"sigma": 0.1, "sigma_start": 0.4})
    seen = []
    for learner.k in range(10):
        seen.append((learner.heat(), learner.target().sigma))
    heats, sigmas = zip(*seen, strict=True)
    assert heats == pytest.approx([3.0, 2.6, 2.2, 1.8, 1.4, *[1.0] * 5])
    assert sigmas == pytest.approx([0.4 * 0.25 ** (k / 5) for k in range(5)] + [0.1] * 5)


def test_a_hold_that_does_not_divide_the_path_is_refused():
    with pytest.raises(ValueError, match="hold = 7 does not divide the 40 steps"):
        job(hold=7)
