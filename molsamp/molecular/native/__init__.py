"""Native energies: many replicas of one openmm.System at once, exactly, without OpenMM in the loop.

    reading      openmm.System -> Terms, or a refusal by name          (born, splines: its harder parts)
    terms        what a System amounts to: indices and constants, numpy float64
    torch_tier   Terms -> energy and force in torch: any device, differentiable
    lanes        Terms -> energy and force in numba, one replica a SIMD lane; whole rollouts too
    energy       NativeEnergy, the one door
"""
