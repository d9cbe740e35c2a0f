"""A model as the command line samples it: by name, guided or not, with the pictures it can be compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from molsamp.engine.state import Particles
from molsamp.image import foreign, models
from molsamp.image.data import Images
from molsamp.image.denoiser import Denoiser
from molsamp.learn.weights import digest

Observer = Callable[[int, Particles, object], None]


@dataclass(frozen=True)
class Subject:
    """A model, and towards what it is sampled.

    Args:
        name: of the model, as `models.load` knows it, or a folder of diffusers.
        denoiser: the model itself.
        label: class of every picture; None: no class, or under guidance the classes in turn.
        guidance: w of classifier-free guidance, 0 unconditional, 1 conditional; None: 1 with a label, else none.
        threshold: quantile of dynamic thresholding; None for none.
    """

    name: str
    denoiser: Denoiser
    label: int | None = None
    guidance: float | None = None
    threshold: float | None = None

    @classmethod
    def of(
        cls, name: str, label: int | None = None, guidance: float | None = None, threshold: float | None = None
    ) -> Subject:
        """Load a model by name, and see that it can do what is asked of it by one call.

        Raises:
            ValueError: as `models.load` or `foreign.read`; a class or guidance for a model without classes; a class
                that it has not; a network whose answer has another shape than its pictures.
        """
        denoiser = foreign.read(Path(name)) if foreign_folder(name) else models.load(name)
        classes, asked = denoiser.conditional, "class" if label is not None else "guidance"
        if classes is None and not (label is None and guidance is None):
            raise ValueError(f"{asked}: model '{name}' is unconditional, it knows no classes")
        if label is not None and classes is not None and not 0 <= label < classes:
            raise ValueError(f"class: got {label}; model '{name}' has the classes 0 to {classes - 1}")
        subject = cls(name, denoiser, label, guidance, threshold)
        first = torch.zeros(1, *denoiser.event)
        subject.model(torch.arange(1))(first, denoiser.schedule.start)
        return subject

    def labels(self, ids: Int[Tensor, " n"]) -> Int[Tensor, " n"] | None:
        """The class of each picture; None without."""
        if self.guidance == 0.0 or (self.label is None and self.guidance is None):
            return None
        if self.label is not None:
            return torch.full_like(ids, self.label)
        assert self.denoiser.conditional is not None
        return ids % self.denoiser.conditional

    def model(self, ids: Int[Tensor, " n"]) -> Denoiser:
        """The denoiser of the pictures with these ids, its counters at 0."""
        labels, d = self.labels(ids), self.denoiser
        if labels is not None:
            d = d.guided(labels, 1.0 if self.guidance is None else self.guidance)
        else:
            d = Denoiser(d.schedule, d.predict, d.event, passes=d.passes)
        return d if self.threshold is None else d.thresholded(self.threshold)

    def pictures(self, of: str | None = None) -> tuple[Images, Images] | None:
        """(training, held out) of a data set, only of the class that is sampled; None where none is known.

        Args:
            of: name of the data set; None: the one the model is named after.

        Raises:
            ValueError: an unknown data set, pictures of another shape than the model's, or a package that is missing.
        """
        name = data_set(self.name) if of is None else of
        if name is None:
            return None
        if name not in models.SETS:
            raise ValueError(f"data: got '{name}'; allowed are {', '.join(models.SETS)}")
        images = models.SETS[name]()
        if images.x.shape[1:] != self.denoiser.event:
            got, wanted = (" x ".join(map(str, shape)) for shape in (images.x.shape[1:], self.denoiser.event))
            raise ValueError(f"data: pictures of '{name}' are {got}, those of model '{self.name}' {wanted}")
        kept, out = images.split()
        if self.label is None or self.guidance == 0.0:
            return kept, out
        return _of_class(kept, self.label), _of_class(out, self.label)


def _of_class(images: Images, label: int) -> Images:
    return Images(*(part[images.label == label] for part in images))


def data_set(name: str) -> str | None:
    """The data set that a model is named after: "mnist" of "ideal:mnist"; None for a file."""
    bare = name.removeprefix("ideal:")
    return bare if bare in models.SETS else None


def foreign_folder(name: str) -> bool:
    """Whether a model's name is that of a folder, and not of a model that is shipped."""
    return name not in models.NAMES and Path(name).is_dir()


def fingerprint(name: str) -> str | None:
    """sha256, its first 16 digits, of a model's file of weights, or of a folder's files; None for a model without."""
    if foreign_folder(name):
        each = "".join(map(digest, foreign.files(Path(name))))
        return hashlib.sha256(each.encode()).hexdigest()[:16]
    file = models.WEIGHTS / f"{name}.safetensors" if name in models.SETS else Path(name)
    return digest(file) if file.is_file() else None
