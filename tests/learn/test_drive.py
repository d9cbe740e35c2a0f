"""The driver: an interrupted and resumed job ends with the bytes of one that ran through."""

import pytest
import torch

from molsamp.engine import Noise
from molsamp.learn.drive import Interrupted, drive


class Walk:
    """A random walk of `total` steps, the noise keyed by the step."""

    def __init__(self, total: int = 6):
        self.k, self.total, self.x = 0, total, torch.zeros(3, dtype=torch.float64)

    def advance(self):
        self.x = 0.9 * self.x + Noise(3).normal(self.k, torch.arange(3), ())
        self.k += 1
        return {"norm": float(self.x.norm())}

    def state(self):
        return {"k": torch.tensor(self.k), "x": self.x.clone()}

    def load(self, state):
        self.k, self.x = int(state["k"]), state["x"].clone()


class Diary:
    """A journal in memory that asks to stop once `stop` units are logged."""

    def __init__(self, stop: int | None = None, saved=None):
        self.stop, self.saved, self.saves, self.lines, self.files = stop, saved, 0, [], {}

    @property
    def interrupted(self):
        return self.stop is not None and len(self.lines) >= self.stop

    def resume(self):
        return self.saved

    def save(self, state):
        self.saved = {k: b.clone() for k, b in state.items()}
        self.saves += 1

    def log(self, metrics):
        self.lines.append(metrics)

    def append(self, name, lines):
        self.files[name] = self.files.get(name, "") + lines


def test_resumed_is_uninterrupted():
    whole, first, second = Walk(), Walk(), Walk()
    through = Diary()
    drive(whole, through)
    half = Diary(stop=2)
    with pytest.raises(Interrupted):
        drive(first, half)
    assert int(half.saved["k"]) == 2
    rest = Diary(saved=half.saved)
    drive(second, rest)
    assert torch.equal(second.x, whole.x)
    assert half.lines + rest.lines == through.lines
    assert [line["k"] for line in through.lines] == list(range(6))


def test_it_saves_at_the_end_and_as_often_as_told():
    rarely, always = Diary(), Diary()
    drive(Walk(), rarely)
    drive(Walk(), always, every=0.0)
    assert (rarely.saves, always.saves) == (1, 6)
    assert int(rarely.saved["k"]) == 6


def test_a_request_during_the_last_unit_comes_too_late():
    diary = Diary(stop=6)
    drive(Walk(), diary)
    assert diary.saves == 1 and int(diary.saved["k"]) == 6


def test_a_finished_job_is_left_alone():
    diary = Diary()
    drive(Walk(), diary)
    again = Diary(saved=diary.saved)
    drive(Walk(), again)
    assert again.lines == [] and again.saves == 0


def test_each_sees_every_unit_with_or_without_a_journal():
    seen: list[dict] = []
    drive(Walk(), each=seen.append)
    diary = Diary()
    drive(Walk(), diary, each=seen.append)
    assert seen[:6] == seen[6:] == diary.lines
