"""Controls learned from nothing, against the closed forms of the control they should become (card 12.3, 12.4, 12.6).

For a Gaussian reward at the end of a linear Gaussian process the best shift of the noise u* is known (Riccati), and
by symmetry of the noise it is exactly where the log-variance loss is stationary, whatever the temperature of the
noise in the buffer.
"""

import math

import pytest
import torch
from torch import nn

from molsamp.engine import (
    Controlled,
    EulerMaruyama,
    LangevinMiddle,
    Noise,
    Overdamped,
    Particles,
    Underdamped,
    log_mean_exp,
    rollout,
)
from molsamp.engine.closed_forms import Harmonic, ornstein_uhlenbeck, oscillator
from molsamp.learn.buffer import Ring
from molsamp.learn.fit import fit
from molsamp.learn.networks import MLP
from molsamp.learn.objectives import log_variance

TARGET, WIDTH = 1.0, 0.3


class Bench:
    """One process with a final Gaussian reward, and the training loop of card section 5 on it.

    Args:
        dyn, integrator: the process.
        chain: its closed form.
    """

    def __init__(self, dyn, integrator, chain):
        self.dyn, self.integrator, self.chain = dyn, integrator, chain
        self.best = chain.control(TARGET, WIDTH)

    def start(self, n: int) -> Particles:
        """n copies of the fixed start."""
        x, *v = (torch.full((n, 1), float(a), dtype=torch.float64) for a in self.chain.mean)
        return Particles.at(x, *v)

    def draw(self, control, n: int, noise: Noise, heat: float = 1.0):
        """n paths under a control, as items of a ring: s (rows, d), z (rows,), reward; and log dP_u/dP_0."""
        dyn = Controlled(self.dyn, lambda t, x, v: control(round(t / self.chain.h), state(x, v)).detach()[..., None])
        path = rollout(dyn, self.integrator, self.start(n), self.chain.times, noise=noise, heat=math.sqrt(heat))
        s = state(path.x[:-1], None if path.v is None else path.v[:-1])
        reward = -((path.x[-1, :, 0] - TARGET) ** 2) / (2 * WIDTH**2)
        return {"s": s.transpose(0, 1), "z": path.z[..., 0].T, "reward": reward}, path.log_ratio

    def log_rn(self, control, batch) -> torch.Tensor:
        """log dP_u/dP_0 of stored paths."""
        u = control(slice(None), batch["s"])
        return (u * (batch["z"] - 0.5 * u)).sum(1)

    def train(self, control, *, rollouts, paths, steps, rate, heat, noise) -> float:
        """`rollouts` of `paths`, noise at `heat` times the temperature, `steps` of Adam each; returns log_z."""
        log_z = nn.Parameter(torch.zeros((), dtype=torch.float64))
        groups = [{"params": list(control.parameters()), "lr": rate}, {"params": [log_z], "lr": 0.3}]
        optimiser, ring = torch.optim.Adam(groups), Ring(4 * paths)
        for k in range(rollouts):
            ring.push(self.draw(control, paths, noise.child(f"rollout {k}"), heat)[0])

            def batch(step, first=k * steps):
                return ring.take(noise.integers(first + step, torch.arange(128), (), len(ring)))

            def loss(stored):
                return log_variance(self.log_rn(control, stored), stored["reward"], log_z)

            for group in optimiser.param_groups:
                group["lr"] *= 0.02 ** (1 / rollouts)
            fit(loss, batch, optimiser, steps=steps, clip=1.0)
        return float(log_z.detach())


def state(x, v):
    """(..., d) from x (..., 1) and v (..., 1) or None."""
    return x if v is None else torch.cat([x, v], -1)


class Linear(nn.Module):
    """u = a_k + b_k . s, coefficients of their own in every row; zero at first."""

    def __init__(self, rows: int, d: int):
        super().__init__()
        self.gains = nn.Parameter(torch.zeros(rows, 1 + d, dtype=torch.float64))

    def forward(self, k, s):
        """k: a row for s (n, d), or all rows for s (n, rows, d)."""
        g = self.gains[k]
        return g[..., 0] + (g[..., 1:] * s).sum(-1)


class Network(nn.Module):
    """u = net(x, t) for one coordinate."""

    def __init__(self, rows: int, noise: Noise):
        super().__init__()
        self.times = torch.arange(rows, dtype=torch.float64) / rows
        self.net = MLP((2, 24, 24, 1), noise).double()

    def forward(self, k, s):
        """As in `Linear`."""
        t = self.times[k].expand(s.shape[:-1])
        return self.net(torch.stack([s[..., 0], t], -1))[..., 0]


def brownian(n: int = 25) -> Bench:
    """Card 12.3: D = 1/2, T = 1, from -1; log Z = -3.0819."""
    chain = ornstein_uhlenbeck(rate=0.0, D=0.5, h=1.0 / n, steps=n, x0=-1.0)
    return Bench(Overdamped(Harmonic(0.0), kT=0.5), EulerMaruyama(), chain)


def spring(n: int = 20) -> Bench:
    """Card 12.4: an underdamped oscillator from rest at -0.5."""
    chain = oscillator(stiffness=4.0, mass=2.0, kT=1.3, friction=1.5, h=0.1, steps=n, x0=-0.5, v0=0.0)
    masses = torch.tensor([2.0], dtype=torch.float64)
    return Bench(Underdamped(Harmonic(4.0), masses, 1.3, 1.5), LangevinMiddle(), chain)


def exact(bench: Bench):
    """u* as a control of (k, s)."""
    control = Linear(bench.chain.steps, len(bench.chain.a))
    control.gains.data = bench.best.gains.clone()
    return control


def distance(bench: Bench, control, noise: Noise) -> float:
    """KL(P_u* || P_u) in nats: the mean over 500 paths of u* of sum (u - u*)^2 / 2."""
    best = exact(bench)
    stored, _ = bench.draw(best, 500, noise)
    gap = control(slice(None), stored["s"]) - best(slice(None), stored["s"])
    return float((0.5 * gap**2).sum(1).mean().detach())


def constant(bench: Bench, heat: float) -> float:
    """Where log_z settles, the mean of log w under u* with hot noise: log Z + sum [log(1 + rho) - heat rho] / 2."""
    return bench.best.log_z + 0.5 * float((torch.log1p(bench.best.rho) - heat * bench.best.rho).sum())


def test_a_network_learns_the_brownian_control_from_hot_noise():
    """An MLP of (x, t), from nothing, on paths with noise at twice the temperature.

    log Z by importance sampling with 20 000 paths within 0.02 of -3.0819, four standard errors and more (false alarm
    6e-5); the control within 0.06 nats of u* and the learned constant within 0.25 of its own limit: training to
    finite accuracy, 0.02 to 0.03 and 0.04 to 0.08 at two seeds.
    """
    bench, noise = brownian(), Noise(81)
    assert bench.best.log_z == pytest.approx(-3.0819, abs=1e-4)
    control = Network(25, noise.child("weights"))
    assert distance(bench, control, noise.child("before")) > 2.0
    log_z = bench.train(control, rollouts=20, paths=256, steps=40, rate=0.02, heat=2.0, noise=noise)
    assert distance(bench, control, noise.child("after")) < 0.06
    assert abs(log_z - constant(bench, 2.0)) < 0.25
    stored, log_rn = bench.draw(control, 20_000, noise.child("test"))
    value, error = log_mean_exp(stored["reward"] - log_rn)
    assert abs(value - bench.best.log_z) < 0.02 and error < 0.005


@pytest.mark.parametrize("heat", [1.0, 2.0])
def test_a_linear_control_finds_the_riccati_gains(heat):
    """Underdamped oscillator, u = a_k + b_k x + c_k v in every row, from nothing: the same optimum at T and at 2 T.

    Within 0.01 nats of u* (1.16 before), gains of the last ten rows, where x and v have spread, within 0.1 (they are
    up to 1.0, 0.84 and 0.34), the constant within 0.05 of its limit, which heat moves by 0.8.
    """
    bench, noise = spring(), Noise(82)
    control = Linear(bench.chain.steps, 2)
    assert distance(bench, control, noise.child("before")) > 1.0
    log_z = bench.train(control, rollouts=20, paths=512, steps=30, rate=0.1, heat=heat, noise=noise)
    assert distance(bench, control, noise.child("after")) < 0.01
    assert float((control.gains.detach() - bench.best.gains)[-10:].abs().max()) < 0.1
    assert abs(log_z - constant(bench, heat)) < 0.05


@pytest.mark.parametrize("make", [brownian, spring])
@pytest.mark.parametrize("heat", [1.0, 2.0])
def test_the_loss_is_stationary_at_the_best_control_and_nowhere_near(make, heat):
    """On paths of u* with noise at T and at 2 T the log-variance loss has no slope in any gain; at 0.9 u* it has.

    20 000 paths; z-scores of all gains (at most 60) below 4.5: false alarm 4e-4.
    """
    bench = make()
    stored, _ = bench.draw(exact(bench), 20_000, Noise(83), heat)
    assert steepest(bench, exact(bench), stored) < 4.5
    control = exact(bench)
    control.gains.data *= 0.9
    assert steepest(bench, control, stored) > 6.0


def steepest(bench: Bench, control: Linear, stored) -> float:
    """Largest z-score of d loss / d gain = 2 E[(d - E d) (z_k - u_k) (1, s_k)], d = log_rn - log_reward.

    Row 0 is left out: all paths start in one state, where the gains are one and the same number.
    """
    with torch.no_grad():
        d = bench.log_rn(control, stored) - stored["reward"]
        xi = stored["z"] - control(slice(None), stored["s"])
    ones = torch.cat([torch.ones_like(stored["s"][..., :1]), stored["s"]], -1)
    slope = (((d - d.mean())[:, None] * xi)[..., None] * ones)[:, 1:]
    return float((slope.mean(0) / slope.std(0) * len(d) ** 0.5).abs().max())
