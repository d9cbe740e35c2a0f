"""How much free energy does phi of alanine dipeptide cost? A restraint is moved from C7eq to C5 (20 seconds).

Walkers are weighed by the work of moving it; populations that are resampled by these weights on the way know log Z
better, for the same evaluations. `turned_on(Reward(..))` asks the same of a reward.
"""

import math
from dataclasses import replace

import molsamp as ms
from molsamp.molecular.steering.annealing import difference, moved

ala = ms.load("alanine-dipeptide")
task, noise, groups = ms.molecular.Task.of(ala, ["phi"]), ms.Noise(0), 8
dyn = task.dynamics(task.energy)

first, last = math.radians(-78.0), math.radians(-150.0)
biases = moved(task.cvs, [first], [last], width=[0.15], stages=25, kT=task.kT, event=ala.event)

start = task.start(noise.child("start"), 32 * groups, ["C7eq"])
held = replace(dyn, field=task.energy + biases[0])
times = [k * task.timestep for k in range(5001)]
start = ms.rollout(held, task.integrator, start, times, noise=noise.child("settle"), save="last").final

for name, below in (("resampled on the way", 0.5), ("never (Jarzynski)", 0.0)):
    how = {"timestep": task.timestep, "rows": 200, "noise": noise.child("move"), "groups": groups, "below": below}
    found = ms.molecular.anneal(dyn, start, biases, **how)
    print(
        f"{name:22} F(-150) - F(-78 degrees) = {difference(found, task.kT)}, ESS {found.effective[-1].mean():.1f} of 32"
    )
