"""A run's settings from a file and from the command line.

    config = load_config(file=Path("configs/quickstart.toml"), overrides={"train.lr": "1e-5"})

A file (TOML or YAML) holds some of the keys of schema.py under their section; `overrides` are dotted names with text
values. Both go through the same validation, so a bad value gets the same sentence wherever it came from.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from biencoder.config.keys import describe, nearest_key
from biencoder.config.paths import find_file
from biencoder.config.schema import Config
from biencoder.errors import ConfigError

_adapter = TypeAdapter(Config)


def load_config(*, file: Path | None = None, overrides: Mapping[str, str] | None = None) -> Config:
    """Defaults, then the file, then the overrides (dotted names, text values), validated together.

    Raises:
        ConfigError: the file cannot be read, or a key is unknown, of the wrong type or out of range; all such faults of
            file and overrides are named in one message.
    """
    values = _read(file) if file else {}
    for name, text in (overrides or {}).items():
        *sections, key = name.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):  # the file has a value where a section belongs: validation says so
                break
        else:
            target[key] = text
    try:
        return _adapter.validate_python(values)
    except ValidationError as error:
        given = [_sentence(fault) for fault in error.errors() if _name(fault) in (overrides or {})]
        written = [_sentence(fault) for fault in error.errors() if _name(fault) not in (overrides or {})]
        if written and file:
            written[-1] += f" in {file}"
        raise ConfigError("; ".join(written + given)) from None


def _read(file: Path) -> dict[str, Any]:
    path = find_file(str(file))
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            values = tomllib.loads(text)
        elif path.suffix in (".yaml", ".yml"):
            import yaml

            values = yaml.safe_load(text) or {}
        else:
            raise ConfigError(f"the configuration file {file} must end in .toml, .yaml or .yml")
    except OSError as error:
        raise ConfigError(f"the configuration file {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the configuration file {file} is not UTF-8 text") from None
    except ValueError as error:  # a TOML syntax error; YAML's own error is caught below
        raise ConfigError(f"the configuration file {file} is not valid TOML: {error}") from None
    except Exception as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"the configuration file {file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"the configuration file {file} must hold sections of keys, not a {type(values).__name__}")
    return values


def _name(fault: Any) -> str:
    return ".".join(str(part) for part in fault["loc"])


def _sentence(fault: Any) -> str:
    name = _name(fault)
    if fault["type"] == "unexpected_keyword_argument":
        return f"unknown key `{name}`; the nearest valid one is `{nearest_key(name)}`"
    found = json.dumps(fault["input"], default=str)
    description, allowed, _ = describe().get(name, ("", "a section of keys", None))
    return f"`{name}` is {found}, expected {allowed}" + (f" ({description.rstrip('.')})" if description else "")
