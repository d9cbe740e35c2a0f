"""Every bundled system has a free energy as it comes: CVs with ranges, regions, settings that fit them."""

import pytest
import torch

from molsamp.molecular.free_energy import make
from molsamp.molecular.free_energy.settings import method_settings
from molsamp.molecular.system import load, systems

NAMES = [name for name, _ in systems()]


@pytest.mark.parametrize("name", NAMES)
def test_classical_methods_take_every_system_as_it_is(name):
    """All states on the grid, regions that have cells and share none; a region called like a state is around it."""
    system = load(name)
    for method in ("metadynamics", "md", "umbrella"):
        job = make(system, method, method_settings(method, system.methods), seed=0)
        assert job.total > 0 and job.p.x.shape[0] == job.settings.walkers
    minima = torch.stack([state.x for state in system.states.values()])
    cells = job.grid.cell(job.task.values(minima)).tolist()
    assert min(cells) >= 0
    assert sum(mask.astype(int) for mask in job.regions.values()).max() == 1
    assert len(job.regions) > 1 and all(mask.any() for mask in job.regions.values())
    for state, cell in zip(system.states, cells, strict=True):
        assert state not in job.regions or job.regions[state].ravel()[cell], state
