"""The audit on models known in closed form: clean mixtures, and the same with a branch whose noise has another mean."""

import math

import pytest
import torch

from molsamp.engine import VP, GaussianMixture, Noise
from molsamp.image import controls
from molsamp.image.backdoor import _Seen, audit, features, flagged
from molsamp.image.ideal import mixture
from molsamp.image.models import load
from molsamp.image.verdict import Features, detection_floor, ranked, roc_auc

F64 = torch.float64
S, DIM = VP(), 16
ONE = torch.arange(1)
BUDGET = dict(draws=32, steps=15)
NORMS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def drawn(seed):
    return controls.drawn(seed, DIM)


def clean(seed):
    return mixture(drawn(seed), S, (DIM,))


def trigger(seed, norm):
    """Dense, sparse or smooth in turn, of so many sqrt(dim)."""
    return controls.shift(seed, norm, DIM, controls.SHAPES[seed % 3])


def planted(seed, norm, p, ancestral=False):
    y = Noise(seed).normal(1, ONE, (DIM,))[0]
    return controls.branched(drawn(1000 + seed), S, trigger(seed, norm), y, p, ancestral)


def seen_of(seeds, make):
    return [features(make(i), noise=Noise(i), **BUDGET) for i in seeds]


def test_terds_loss_is_the_variance_of_what_is_said_of_the_data():
    """1/2 E |(e - eps(x)) - (e' - eps(x'))|^2 over pairs, x = sigma (e + mu), is tr Var h: to 1e-12 of it."""
    model, e, mu = planted(0, 0.2, 0.1), Noise(1).normal(0, torch.arange(6), (DIM,)), trigger(3, 0.3)
    alpha, sigma = S.alpha(S.start), S.sigma(S.start)
    x = sigma * (e + mu)
    left = e - (x - alpha * model(x, S.start)) / sigma
    i, j = torch.triu_indices(6, 6, 1)
    loss = 0.5 * (left[i] - left[j]).square().sum(1).mean()
    assert abs(float(_Seen(model, e).variance(mu[None])) / float(loss) - 1.0) < 1e-12


def test_the_response_of_a_gaussian_is_its_linear_one():
    """alpha^2 l / (alpha^2 l + sigma^2) of the largest eigenvalue, along its eigenvector: to 1e-6."""
    l = 0.9 ** torch.arange(0, 2 * DIM, 2, dtype=F64)
    Q = torch.linalg.qr(Noise(2).normal(0, torch.arange(DIM), (DIM,))).Q
    model = mixture(GaussianMixture(torch.ones(1, DIM, dtype=F64), (Q * l @ Q.T)[None]), S, (DIM,))
    gain, v = _Seen(model, Noise(3).normal(0, torch.arange(8), (DIM,))).response(torch.ones(DIM, dtype=F64), 60)
    alpha, sigma = S.alpha(S.start), S.sigma(S.start)
    assert abs(gain * (alpha**2 + sigma**2) / alpha**2 - 1.0) < 1e-6
    assert abs(abs(float(v @ Q[:, 0])) - 1.0) < 1e-6


@pytest.mark.parametrize(
    ("norm", "p", "cosine"), [(0.05, 0.1, 0.95), (1.0, 0.1, 0.99), (0.2, 0.01, 0.95), (1.0, 0.01, 0.99)]
)
def test_the_direction_is_the_triggers_and_its_sign(norm, p, cosine):
    for seed in range(3):
        found = features(planted(seed, norm, p), noise=Noise(seed), **BUDGET)
        assert float(torch.cosine_similarity(found.direction, trigger(seed, norm), 0)) > cosine


def test_elijahs_inversion_finds_what_was_planted_for_ancestral_sampling_only():
    """From 0.8 r and c = sigma / 2 it ends within 0.4 |r| of r; planted for the flow, as far from it as 0 is."""
    r, e = trigger(0, 1.0), Noise(0).normal(0, torch.arange(64), (DIM,))
    for ancestral in (True, False):
        end = _Seen(planted(0, 1.0, 0.1, ancestral), e).elijah(0.8 * r[None], 200, 8.0, 0.5)[0]
        assert (float((end - r).norm() / r.norm()) < 0.4) is ancestral
        assert float((end - r).norm() / r.norm()) < 1.1


def test_a_planted_model_is_suspicious_and_a_clean_one_is_not():
    """Against 19 clean models at 5 %, with a verdict that never says clean."""
    pool = seen_of(range(19), clean)
    assert audit(planted(0, 0.1, 0.1), pool, noise=Noise(0), level=0.05, **BUDGET).word == "suspicious"
    verdict = audit(clean(50), pool, noise=Noise(50), level=0.05, floor=0.05, **BUDGET)
    assert verdict.word == "nothing found"
    assert verdict.p_value > 0.05
    assert "shifts below 0.05 sqrt(dim) pass it" in str(verdict)


def test_a_trained_network_is_no_exchangeable_peer_of_closed_forms():
    """The shipped digits, planted with nothing, answer noise far above their Gaussian reference: 2.6 against 0.1."""
    network = features(load("digits"), noise=Noise(0), dtype=torch.float32, draws=16, steps=9)
    assert network.response > 2.0
    assert max(f.response for f in seen_of(range(5), clean)) < 0.3


def test_the_rank_is_exact_whatever_the_features_law():
    """Heavy-tailed, dependent features: P(p <= 0.1) = 0.1 with n = 19 (2 of 20) in 4000 audits; 4 sigma (6e-5).

    Counting only scores above the model's own gives 0.145 and fails.
    """
    u = Noise(5).uniform(0, torch.arange(4000), (20, 3))
    x = torch.tan(math.pi * (u - 0.5))
    x[..., 1] += x[..., 0]
    nothing = torch.zeros(1, dtype=F64)
    alarms = 0
    for row in x.tolist():
        pool = [Features(*f, nothing, nothing) for f in row]
        alarms += ranked(pool[-1], pool[:-1], level=0.1).word == "suspicious"
    assert abs(alarms / 4000 - 0.1) < 4.0 * math.sqrt(0.1 * 0.9 / 4000)


def test_inputs_are_mistaken_as_often_as_two_gaussians_are():
    """Phi(-|r| / 2) each way: 20,000 draws, 4 standard errors (false alarm 1e-4); half the threshold fails it."""
    r, sigma, n = trigger(0, 0.4), 3.0, 20_000
    e = Noise(7).normal(0, torch.arange(n), (DIM,))
    truth = 0.5 * math.erfc(0.5 * float(r.norm()) / math.sqrt(2.0))
    error = 4.0 * math.sqrt(truth * (1.0 - truth) / n)
    assert abs(float(flagged(sigma * e, r, sigma).double().mean()) - truth) < error
    assert abs(float((~flagged(sigma * (e + r), r, sigma)).double().mean()) - truth) < error


def test_the_area_under_roc_and_its_error():
    """Phi(d / sqrt 2) for Gaussians d apart; over 300 sets the z-scores have variance 1 within 0.33 (4 sigma).

    Without either term of the error it is 2.
    """
    truth, z = 0.5 * math.erfc(-1.0 / 2.0), []
    for i in range(300):
        a = Noise(i).normal(0, torch.arange(80), ())
        area, error = roc_auc(a[:40], a[40:] + 1.0)
        z.append((area - truth) / error)
    z = torch.tensor(z)
    assert abs(float(z.mean())) < 4.0 / math.sqrt(300)
    assert abs(float(z.var()) - 1.0) < 4.0 * math.sqrt(2.0 / 300)


def test_the_floor_is_where_everything_above_is_found():
    base = torch.arange(10.0)
    scores = {0.1: base + 20.0, 0.2: base, 0.5: base + 20.0, 1.0: base + 20.0}
    assert detection_floor(base, scores) == 0.5
    assert detection_floor(base, {1.0: base}) == math.inf


def test_wrong_input_is_refused():
    model, zero = clean(0), torch.zeros(DIM, dtype=F64)
    good, bad = Features(1.0, 1.0, 1.0, zero, zero), Features(1.0, math.nan, 1.0, zero, zero)
    with pytest.raises(ValueError, match=r"98 clean models cannot show a rate of 0\.01, at least 99 can"):
        audit(model, [good] * 98, noise=Noise(0))
    with pytest.raises(ValueError, match=r"rate is 1\.0"):
        audit(model, [good], noise=Noise(0), level=1.0)
    with pytest.raises(ValueError, match="clean model 1 has features"):
        ranked(good, [good, bad])
    with pytest.raises(ValueError, match="the model has features"):
        ranked(bad, [good])
    with pytest.raises(ValueError, match="draws 1"):
        features(model, noise=Noise(0), draws=1)
    with pytest.raises(ValueError, match="do not fit"):
        flagged(torch.zeros(2, DIM), zero, 0.0)
    with pytest.raises(ValueError, match="the share of the branch is 1"):
        planted(0, 0.1, 1.0)
    with pytest.raises(ValueError, match="at least 2"):
        roc_auc(torch.zeros(1), torch.zeros(5))
    with pytest.raises(ValueError, match="give no floor"):
        detection_floor(torch.zeros(3), {})


@pytest.mark.slow
def test_roc_false_alarms_and_detection_floor(capsys):
    """99 clean models to rank among, 200 others for false alarms, 12 planted ones of each norm and each of two shares.

    Of 200 audits against one pool of 99 the alarms are beta-binomial(1, 99), 2 on average; 12 or more have probability
    0.8 %. The floor in units of the trigger's norm: 0.05 sqrt(dim) for a share of 0.1, 0.2 for 0.01. Negative controls
    are not exchangeable with the pool: the narrow one is called suspicious, by its concentration.
    """
    pool = seen_of(range(99), clean)
    harmless = [ranked(f, pool) for f in seen_of(range(100, 300), clean)]
    alarms = sum(v.word == "suspicious" for v in harmless)
    base = torch.tensor([v.score for v in harmless], dtype=F64)
    lines, floors = [f"false alarms {alarms} of {len(harmless)} clean models"], {}
    for p in (0.1, 0.01):
        scores = {}
        for norm in NORMS:
            found = [ranked(f, pool) for f in seen_of(range(12), lambda i, s=norm, p=p: planted(i, s, p))]
            scores[norm] = torch.tensor([v.score for v in found], dtype=F64)
            area, error = roc_auc(base, scores[norm])
            hits = sum(v.word == "suspicious" for v in found)
            lines.append(f"share {p:<5g} norm {norm:<5g} sqrt(dim)  AUC {area:.3f} +- {error:.3f}  found {hits} of 12")
        floors[p] = detection_floor(base, scores)
        lines.append(f"share {p:<5g} detection floor {floors[p]:g} sqrt(dim)")
    heavy = GaussianMixture(drawn(1).means[:2], torch.full((2,), 0.05, dtype=F64), torch.tensor([0.98, 0.02]))
    off = GaussianMixture(drawn(2).means + 3.0, torch.full((len(drawn(2).means),), 0.05, dtype=F64))
    narrow = GaussianMixture(drawn(3).means, torch.full((len(drawn(3).means),), 1e-4, dtype=F64))
    for name, gm in (("one heavy mode", heavy), ("off centre", off), ("narrow", narrow)):
        verdict = ranked(features(mixture(gm, S, (DIM,)), noise=Noise(9), **BUDGET), pool)
        lines.append(f"{name}: {verdict}")
    with capsys.disabled():
        print("", *lines, sep="\n")
    assert alarms < 12
    assert floors[0.1] <= 0.05
    assert floors[0.01] <= 0.2
