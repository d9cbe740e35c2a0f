"""SST's witnesses in batches, against the algorithm for one candidate at a time."""

import pytest
import torch

from molsamp.engine import Noise
from molsamp.engine.witnesses import Witnesses

F64 = torch.float64


class OneByOne:
    """Algorithm 8: the nearest witness if it is near, else a new one; kept if cheaper than its representative."""

    def __init__(self, radius):
        self.radius, self.points, self.cost, self.node = radius, [], [], []

    def offer(self, point, cost, node):
        d = [float((point - w).norm()) for w in self.points]
        if not d or min(d) > self.radius:
            self.points.append(point)
            self.cost.append(torch.inf)
            self.node.append(-1)
            d.append(0.0)
        w = min(range(len(d)), key=d.__getitem__)
        if cost < self.cost[w]:
            self.cost[w], self.node[w] = cost, node


def draws(n=600):
    x = Noise(1).uniform(0, torch.arange(n), (2,)) * 4
    return x, Noise(2).uniform(0, torch.arange(n))


@pytest.mark.parametrize("batch", [1, 7, 600])
def test_representatives_are_those_of_one_by_one(batch):
    """The witnesses and the cheapest node of each; a batch may only skip nodes that would not have lasted."""
    x, cost = draws()
    naive, ours, lost = OneByOne(0.5), Witnesses(0.5, 2), []
    for i in range(len(x)):
        naive.offer(x[i], float(cost[i]), i)
    for a in range(0, len(x), batch):
        got = ours.admit(x[a : a + batch], cost[a : a + batch])
        ours.settle(got.witness, a + got.rows, cost[a + got.rows])
        lost += got.displaced.tolist()
    state = ours.to_tensors()
    if batch == 1:  # a batch's points look at the witnesses before it first, then at each other
        assert torch.equal(state["points"], torch.stack(naive.points))
        assert state["node"].tolist() == naive.node and state["cost"].tolist() == naive.cost
    gaps = torch.cdist(state["points"], state["points"]) + 9 * torch.eye(len(ours), dtype=F64)
    assert float(gaps.min()) > 0.5
    owner_gap = (x - state["points"][:, None]).norm(dim=-1).min(0).values
    assert float(owner_gap.max()) <= 0.5
    assert not set(lost) & set(state["node"].tolist()) and len(set(lost)) == len(lost)
    cheapest = int(cost.argmin())
    assert cheapest in state["node"].tolist()


def test_a_batch_keeps_the_cheapest_and_the_first_of_equals():
    ours = Witnesses(1.0, 1)
    x = torch.tensor([[0.0], [0.1], [5.0], [0.2]], dtype=F64)
    got = ours.admit(x, torch.tensor([3.0, 1.0, 2.0, 1.0], dtype=F64))
    assert got.rows.tolist() == [1, 2] and got.witness.tolist() == [0, 1] and not len(got.displaced)
    ours.settle(got.witness, torch.tensor([10, 11]), torch.tensor([1.0, 2.0], dtype=F64))
    again = ours.admit(x[:3], torch.tensor([1.0, 0.5, 2.0], dtype=F64))  # equal to what is there is not better
    assert again.rows.tolist() == [1] and again.displaced.tolist() == [10]


def test_round_trip():
    x, cost = draws()
    ours = Witnesses(0.3, 2)
    got = ours.admit(x[:300], cost[:300])
    ours.settle(got.witness, got.rows, cost[got.rows])
    back = Witnesses.from_tensors(0.3, ours.to_tensors())
    for a, b in zip(ours.admit(x[300:], cost[300:]), back.admit(x[300:], cost[300:]), strict=True):
        assert torch.equal(a, b)


def test_a_radius_must_be_positive():
    with pytest.raises(ValueError, match=r"radius=0.0 of witnesses"):
        Witnesses(0.0, 2)
