"""Native energies: many replicas of one openmm.System at once, exactly, without OpenMM in the loop.

reading      openmm.System -> Terms, or a refusal by name; its harder parts are born and splines, its smallest probe
terms        what a System amounts to: indices and constants, numpy float64
lanes        Terms -> energy and force in numba, one replica a SIMD lane, on vector; stepping: whole rollouts
executor     shares blocks of lanes among threads and carries the engine's rollouts
torch_tier   Terms -> energy and force in torch: any device, differentiable
alignment    superposition and the body frame of learned controls, compiled too; tangents: turning about bonds
energy       NativeEnergy, the one door
"""
