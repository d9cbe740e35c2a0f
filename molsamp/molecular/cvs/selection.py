"""Atoms by words: mdtraj's selection language."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mdtraj
    from openmm import app


def select(topology: app.Topology | mdtraj.Topology, text: str) -> tuple[int, ...]:
    """0-based indices of the atoms that an mdtraj selection names, for example "resid 0 and name CA" (resid from 0).

    Args:
        topology: of the molecule, OpenMM's or mdtraj's.
        text: mdtraj's atom selection language.
    Raises:
        ValueError: it is no selection, or it selects no atom.
    """
    import mdtraj

    if not isinstance(topology, mdtraj.Topology):
        topology = mdtraj.Topology.from_openmm(topology)
    try:
        found = tuple(int(i) for i in topology.select(text))
    except Exception as error:  # mdtraj raises ValueError for the grammar, and what Python raises for the rest
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"got {text!r}; it is no mdtraj selection ({reason})") from None
    if not found:
        raise ValueError(f"got {text!r}; it selects no atom (in mdtraj resid counts from 0, resSeq is the PDB number)")
    return found
