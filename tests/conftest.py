"""One thread, so that the same seed gives the same bytes; every annotation of the package is checked as it runs."""

import torch
from jaxtyping import install_import_hook

# before the hook: numba compiles functions, not checked ones
import molsamp.engine.kd
import molsamp.molecular.native.alignment
import molsamp.molecular.native.stepping
import molsamp.molecular.native.tangents
import molsamp.planning.kernels
import molsamp.planning.sight  # noqa: F401

CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # the tower: an int is a float

torch.set_num_threads(1)
install_import_hook("molsamp", CHECKER)
