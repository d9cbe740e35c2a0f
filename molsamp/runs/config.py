"""Settings of a run: defaults < preset < file < command line, checked once, written out whole.

Contract: `build` returns a frozen `Config` or raises a `ValueError` of one line. `to_toml` writes every
value in force and the version; the file given back through `--config` makes the same run.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pydantic
from pydantic import Field

from molsamp.schema import Rate, Strict, Temperature, Time, nearest, validate

Table = dict[str, Any]


class Config(Strict):
    """Settings common to all methods of a verb; the table of the method in force stands beside them.

    A field that is None takes the system's own value (`with_system`).
    """

    if TYPE_CHECKING:  # each verb says in its own order what these are
        verb: str
        system: str
        method: str
        seed: int
        energy: str
        device: str
        threads: int

    @property
    def named(self) -> dict[str, Any]:
        """What is worked on, and how, as result.json names them; the first names the run folder too."""
        return {"system": self.system, "method": self.method}

    @property
    def title(self) -> str:
        """What is being done, in a word or two, for the progress."""
        return self.method

    @property
    def of_method(self) -> Any:
        """The settings of the method in force, an instance of its own model; itself where a verb has no methods."""
        return getattr(self, _field(self.method)) if "method" in type(self).model_fields else self

    @property
    def arguments(self) -> dict[str, Any]:
        """What `make` of the verb's room takes besides what all verbs have."""
        return {}


class PathsConfig(Config):
    """Settings of `molsamp paths`."""

    verb: Literal["paths"] = "paths"
    system: str = Field(description="bundled name, folder, or path of a system.toml")
    method: str = "tps-dps"
    preset: Literal["demo", "full"] = "demo"
    seed: int = Field(0, ge=0, lt=2**63)
    start: str | None = Field(None, description="state the paths leave")
    end: str | None = Field(None, description="state the paths should reach")
    temperature: Temperature | None = Field(None, gt=0, description="K; none: the kT of the system")
    steps: int | None = Field(None, ge=1, description="path length in time steps")
    timestep: Time | None = Field(None, gt=0, description="ps (toy systems: reduced units)")
    friction: Rate | None = Field(None, gt=0, description="1/ps; none where the dynamics is overdamped")
    paths: int = Field(64, ge=1, description="number of evaluation paths")
    energy: str = Field("auto", description="auto | lanes | torch | openmm | openmm:PLATFORM")
    device: str = Field("cpu", description="cpu")
    threads: int = Field(1, ge=1, description="of torch; the same number gives the same bytes")

    @property
    def arguments(self) -> dict[str, Any]:
        """The number of paths."""
        return {"paths": self.paths}


class FreeEnergyConfig(Config):
    """Settings of `molsamp free-energy`."""

    verb: Literal["free-energy"] = "free-energy"
    system: str = Field(description="bundled name, folder, or path of a system.toml")
    method: str = "metadynamics"
    preset: Literal["demo", "full"] = "demo"
    seed: int = Field(0, ge=0, lt=2**63)
    cvs: tuple[str, ...] = Field((), description="one or two CVs; none: the first two of the system")
    temperature: Temperature | None = Field(None, gt=0, description="K; none: the kT of the system")
    timestep: Time | None = Field(None, gt=0, description="ps (toy systems: reduced units)")
    friction: Rate | None = Field(None, gt=0, description="1/ps; none where the dynamics is overdamped")
    energy: str = Field("auto", description="auto | lanes | torch | openmm | openmm:PLATFORM")
    device: str = Field("cpu", description="cpu")
    threads: int = Field(1, ge=1, description="of torch; the same number gives the same bytes")

    @property
    def arguments(self) -> dict[str, Any]:
        """The collective variables."""
        return {"cvs": self.cvs}


class RatesConfig(Config):
    """Settings of `molsamp rates`."""

    verb: Literal["rates"] = "rates"
    system: str = Field(description="bundled name, folder, or path of a system.toml")
    method: str = "we"
    preset: Literal["demo", "full"] = "demo"
    seed: int = Field(0, ge=0, lt=2**63)
    start: str | None = Field(None, description="state of A; all states of its region belong to A")
    end: str | None = Field(None, description="state of B; all states of its region belong to B")
    temperature: Temperature | None = Field(None, gt=0, description="K; none: the kT of the system")
    timestep: Time | None = Field(None, gt=0, description="ps (toy systems: reduced units)")
    friction: Rate | None = Field(None, gt=0, description="1/ps; none where the dynamics is overdamped")
    energy: str = Field("auto", description="auto | lanes | torch | openmm | openmm:PLATFORM")
    device: str = Field("cpu", description="cpu")
    threads: int = Field(1, ge=1, description="of torch; the same number gives the same bytes")


class SteerConfig(Config):
    """Settings of `molsamp steer`."""

    verb: Literal["steer"] = "steer"
    system: str = Field(description="bundled name, folder, or path of a system.toml")
    method: str = "fk"
    preset: Literal["demo", "full"] = "demo"
    seed: int = Field(0, ge=0, lt=2**63)
    reward: tuple[str, ...] = Field((), description="QUANTITY=VALUE+-WIDTH or QUANTITY*SLOPE, nats; they add up")
    strength: float = Field(1.0, gt=0, description="factor of all rewards")
    sampler: str | None = Field(None, description="folder of a finished run of a diffusion sampler, for diffusion")
    weights: str | None = Field(None, description="sha256 of what that run has learnt")
    start: str | None = Field(None, description="state in whose minimum all walkers start")
    temperature: Temperature | None = Field(None, gt=0, description="K; none: the kT of the system")
    timestep: Time | None = Field(None, gt=0, description="ps (toy systems: reduced units)")
    friction: Rate | None = Field(None, gt=0, description="1/ps; none where the dynamics is overdamped")
    energy: str = Field("auto", description="auto | lanes | torch | openmm | openmm:PLATFORM")
    device: str = Field("cpu", description="cpu")
    threads: int = Field(1, ge=1, description="of torch; the same number gives the same bytes")

    @property
    def arguments(self) -> dict[str, Any]:
        """The rewards."""
        return {"reward": self.reward, "strength": self.strength}


def build(
    kind: type[Config],
    options: Mapping[str, Any],
    sets: Iterable[str],
    methods: Mapping[str, type[pydantic.BaseModel]],
    presets: Mapping[str, Mapping[str, Table]],
    file: Path | None = None,
    own: Mapping[str, Table] | None = None,
) -> Config:
    """Merge the layers of settings and check them.

    A preset named on the command line outweighs the file; one named in the file, or the default, does not.

    Args:
        kind: the verb's config.
        options: settings given on the command line; None means not given.
        sets: "dotted.key=value" items of `--set`, types from the schema.
        methods: method name -> model of its settings; none for a verb that has no methods.
        presets: preset name -> method name -> overrides of that method's settings; of the verb's without methods.
        file: a TOML file: the `--config` file, or the config.toml of the run that is resumed.
        own: method name -> what the system itself asks for, below the preset.
    Raises:
        ValueError: naming the file or `--set`, the key, what was got and what is allowed.
    """
    given = {key: value for key, value in options.items() if value is not None}
    written = read_toml(file) if file else {}
    method = str(given.get("method", written.get("method", kind.model_fields["method"].default))) if methods else None
    if method is not None and method not in methods:
        raise ValueError(f"--method: '{method}' is unknown;{nearest(method, methods)} Allowed: {_list(methods)}")
    preset = str(given.get("preset", written.get("preset", "demo")))
    if preset not in presets:
        raise ValueError(f"--preset: '{preset}' is unknown;{nearest(preset, presets)} Allowed: {_list(presets)}")
    layer: Table = dict(presets[preset])
    if method is not None:
        layer = _merged({method: (own or {}).get(method, {})}, {method: layer.get(method, {})})
    base = {key: value for key, value in written.items() if key == method or key not in {*methods, "version"}}
    merged = _merged(base, layer) if "preset" in given else _merged(layer, base)
    model = kind if method is None else _model(kind, method, methods[method])
    if file:
        named = {} if method is None else {"method": method}
        absent = {name: "" for name, field in kind.model_fields.items() if field.is_required()}
        validate(model, {**absent, **merged, **named, "preset": preset}, str(file))
    merged = _merged(merged, given)
    of_method = set() if method is None else set(methods[method].model_fields)
    for item in sets:
        merged = _merged(merged, _parse_set(item, kind, method, of_method))
    return validate(model, merged, "--set" if sets else "command line")


def with_system(config: Config, system: Any) -> tuple[Config, Any]:
    """Fill the fields left open from the system, and give the system the fields that were set.

    Returns:
        (config with no open field, system whose `settings` agree with it).
    Raises:
        ValueError: a setting the system cannot have, such as a temperature where kT is fixed.
    """
    own = system.settings
    reduced = getattr(own, "kT", None) is not None
    if reduced and getattr(config, "temperature", None) is not None:
        raise ValueError(f"temperature: {config.system} is in reduced units with kT = {own.kT}; leave it out")
    names = ["start", "end", "steps", "timestep", "friction", *([] if reduced else ["temperature"])]
    names = [name for name in names if name in type(config).model_fields]
    filled = {n: getattr(own, n, None) if getattr(config, n) is None else getattr(config, n) for n in names}
    changed = {name: value for name, value in filled.items() if value is not None}
    known = own.log_p_hit if all(getattr(own, name) == value for name, value in changed.items()) else None
    agreed = validate(type(own), {**own.model_dump(), **changed, "log_p_hit": known}, config.system)
    return config.model_copy(update=filled), dataclasses.replace(system, settings=agreed)


def to_toml(config: Config) -> str:
    """Write every setting in force as TOML, descriptions and units as comments; None is the string "none"."""
    import tomli_w

    table = _plain({"version": version("molsamp"), **config.model_dump(by_alias=True)})
    comments = _descriptions(config)
    lines = []
    for line in tomli_w.dumps(table).splitlines():
        if line.startswith("["):
            inside: Any = config.of_method
            for part in line.strip("[]").split(".")[1:]:
                inside = getattr(inside, part)
            comments = _descriptions(inside)
        key, _, value = line.partition(" = ")
        comment = comments.get(key) if value != "[" else None
        lines.append(f"{line}  # {comment}" if comment else line)
    return "\n".join(lines) + "\n"


def _descriptions(table: pydantic.BaseModel) -> dict[str, str]:
    fields = type(table).model_fields.items()
    return {name: field.description for name, field in fields if field.description}


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the settings that differ between two (nested) tables, as "key: was X, now Y"."""
    a, b = dict(_flat(then)), dict(_flat(now))
    return [
        f"{key}: was {a.get(key, 'absent')!r}, now {b.get(key, 'absent')!r}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def read_toml(file: Path) -> Table:
    """Read a TOML file.

    Raises:
        ValueError: no such file, or not TOML; the message names the file and the line.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"{file}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {error}") from None


def _field(method: str) -> str:
    return method.replace("-", "_") + "_settings"


def _model(kind: type[Config], method: str, settings: type[pydantic.BaseModel]) -> type[Config]:
    """Join the common fields and the table of one method, which the file calls by the method's name."""
    table: Any = (settings, Field(default_factory=settings, alias=method))
    return cast(
        type[Config],
        pydantic.create_model(kind.__name__, __base__=kind, **{_field(method): table}),
    )


def _parse_set(item: str, kind: type[Config], method: str | None, of_method: set[str]) -> Table:
    """Turn "a.b=value" into {"a": {"b": value}}; a lone key of the method's own table is put there.

    Arrays are TOML; other text is converted by the schema.
    """
    key, equals, text = item.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ValueError(f"--set: got '{item}'; allowed is dotted.key=value")
    if parts[0] in ("method", "preset"):
        raise ValueError(f"--set: '{parts[0]}' has an option of its own: --{parts[0]}")
    known = [*kind.model_fields, *([] if method is None else [method]), *sorted(of_method)]
    if parts[0] not in known:
        raise ValueError(f"--set: key '{parts[0]}' is unknown;{nearest(parts[0], known)} Allowed: {_list(known)}")
    if method is not None and parts[0] in of_method and parts[0] not in kind.model_fields:
        parts.insert(0, method)
    value: Any = text.strip()
    if value.startswith("["):
        try:
            value = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"--set {key}: got '{value}'; {error}") from None
    for part in reversed(parts):
        value = {part: value}
    return value


def _merged(*layers: Mapping[str, Any]) -> Table:
    """Merge nested tables; later layers win."""
    out: Table = {}
    for layer in layers:
        for key, value in layer.items():
            nested = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
            out[key] = _merged(out[key], value) if nested else value
    return out


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return "none" if value is None else value


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
