"""Diffusion samplers of equilibrium ensembles: adjoint sampling, and its Schroedinger bridge with a bias on CVs."""
