"""Settings: the layers, the door of `--set`, config.toml given back, and what a resume refuses."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from molsamp.runs.config import PathsConfig, build, differences, read_toml, to_toml, with_system
from molsamp.schema import Length, Strict


class Network(Strict):
    widths: tuple[int, ...] = (64, 64)
    time: bool = Field(False, description="whether the network sees the time")


class Learned(Strict):
    rollouts: int = Field(200, ge=1)
    sigma: Length = Field(0.0025, description="nm")
    delta: float | None = None
    network: Network = Network()


class Free(Strict):
    batch: int = 64


METHODS: dict[str, type] = {"tps-dps": Learned, "md": Free}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {"demo": {}, "full": {"tps-dps": {"rollouts": 600}}}


def settings(*sets: str, file: Path | None = None, **options: Any):
    return build(PathsConfig, {"system": "ala", **options}, sets, METHODS, PRESETS, file)


def test_layers_defaults_preset_file_options_sets(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('preset = "full"\nseed = 5\npaths = 7\n[tps-dps]\nsigma = "1 A"\n')
    made = settings("tps-dps.delta=0.5", file=file, seed=9)
    assert (made.seed, made.paths, made.preset) == (9, 7, "full")
    of_method = made.of_method
    assert (of_method.rollouts, of_method.sigma, of_method.delta) == (600, 0.1, 0.5)
    file.write_text("[tps-dps]\nrollouts = 3\n")
    assert settings(file=file).of_method.rollouts == 3
    assert settings(file=file, preset="full").of_method.rollouts == 600


def test_config_toml_given_back_is_the_same_config(tmp_path):
    made = settings("network.widths=[8, 9]", "delta=none", "timestep=2 fs", "tps-dps.network.time=true", seed=3)
    (tmp_path / "c.toml").write_text(to_toml(made))
    again = settings(file=tmp_path / "c.toml")
    assert to_toml(again) == to_toml(made)
    assert again.of_method.network.widths == (8, 9) and again.of_method.network.time and again.timestep == 0.002


def test_config_toml_names_every_default_with_its_unit():
    text = to_toml(settings())
    table = tomllib.loads(text)
    assert table["tps-dps"] == {
        "rollouts": 200,
        "sigma": 0.0025,
        "delta": "none",
        "network": {"widths": [64, 64], "time": False},
    }
    assert "sigma = 0.0025  # nm\n" in text and "time = false  # whether the network sees the time" in text
    assert table["version"] and table["temperature"] == "none"


def test_tables_of_other_methods_are_left_out(tmp_path):
    (tmp_path / "c.toml").write_text(to_toml(settings()))
    made = settings(file=tmp_path / "c.toml", method="md")
    assert made.of_method == Free() and "tps-dps" not in to_toml(made)


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        (["tps-dps.rolouts=3"], {}, "--set: key 'tps-dps.rolouts' is unknown; did you mean 'tps-dps.rollouts'?"),
        (["rollouts=many"], {}, "--set: key 'tps-dps.rollouts': got 'many'"),
        (["network.widths=[8,"], {}, "--set network.widths: got '[8,'"),
        (["timestep=-1 fs"], {}, "--set: key 'timestep': got '-1 fs'; should be greater than 0"),
        (["seed"], {}, "--set: got 'seed'; allowed is dotted.key=value"),
        (["a..b=1"], {}, "--set: got 'a..b=1'"),
        (["method=md"], {}, "--set: 'method' has an option of its own: --method"),
        ([], {"method": "tps"}, "--method: 'tps' is unknown; did you mean 'tps-dps'? Allowed: tps-dps, md"),
        ([], {"preset": "fast"}, "--preset: 'fast' is unknown; Allowed: demo, full"),
        ([], {"system": None}, "command line: key 'system' is missing"),
    ],
)
def test_bad_settings_are_one_clear_line(sets, options, message):
    with pytest.raises(ValueError) as error:
        settings(*sets, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed = \n", "Invalid value (at line 1, column 8)"),
        ("sed = 3\n", "key 'sed' is unknown; did you mean 'seed'?"),
        ("steps = 0\n", "key 'steps': got 0"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    (tmp_path / "c.toml").write_text(content)
    with pytest.raises(ValueError) as error:
        settings(file=tmp_path / "c.toml")
    assert str(error.value).startswith(f"{tmp_path / 'c.toml'}: ") and message in str(error.value)
    with pytest.raises(ValueError, match=r"none\.toml: no such file"):
        read_toml(tmp_path / "none.toml")


def test_open_fields_come_from_the_system_and_go_to_it():
    from molsamp.molecular.system import load

    toy = load("double-well")
    made, agreed = with_system(settings("steps=50", system="double-well"), toy)
    assert made.steps == agreed.settings.steps == 50
    assert made.timestep == toy.settings.timestep and made.start == toy.settings.start
    assert "none" not in {made.start, made.end} and made.temperature is None
    with pytest.raises(ValueError, match="reduced units with kT"):
        with_system(settings("temperature=300"), toy)
    with pytest.raises(ValueError, match="takes no friction"):
        with_system(settings("friction=1"), toy)


def test_differences_are_listed_by_key():
    then = {"seed": 1, "tps-dps": {"sigma": 0.1, "old": 2}}
    now = {"seed": 1, "tps-dps": {"sigma": 0.2}, "new": "x"}
    assert differences(then, now) == [
        "new: was 'absent', now 'x'",
        "tps-dps.old: was 2, now 'absent'",
        "tps-dps.sigma: was 0.1, now 0.2",
    ]
