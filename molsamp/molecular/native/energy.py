"""NativeEnergy, the one door to the native tiers."""

from molsamp.molecular.native.torch_tier import NativeEnergy

__all__ = ["NativeEnergy"]
