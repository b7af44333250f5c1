"""Code in the user's own files, found by dotted path: importing it, and telling one version from another."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from posttrain.common.config import nearest
from posttrain.common.errors import ConfigError

_SEEN: dict[str, tuple[ModuleSpec | None, str]] = {}


def load_dotted(path: str, what: str) -> Any:
    """The thing that `pkg.module:Thing` names; modules are also looked for in the current folder.

    what: opens every message. Raises ConfigError that says where was looked, or what is wrong in the file.
    """
    name, _, attribute = path.partition(":")
    module = _import(name, what)
    _text_hash(module)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            hint = nearest(part, [known for known in vars(found) if not known.startswith("_")])
            where = getattr(module, "__file__", None) or name
            raise ConfigError(f"{what}: {where} has no '{part}': {hint}")
        found = getattr(found, part)
    return found


def _import(name: str, what: str) -> ModuleType:
    if name.endswith(".py") or "/" in name:
        dotted = name.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigError(f"{what}: a module is named by dots and without .py: write '{dotted}:…'")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # last: a file that is called like an installed package does not hide it
        importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name is None or not f"{name}.".startswith(f"{e.name}."):
            raise ConfigError(f"{what} cannot be imported: '{e.name}' is not installed") from e
        raise ConfigError(
            f"{what} cannot be imported: no module '{e.name}' in the current folder ({here}) or among "
            "the installed packages; run from the folder that holds it, name that folder in PYTHONPATH, or "
            "install the package"
        ) from e
    except Exception as e:
        raise ConfigError(f"{what} cannot be imported: {type(e).__name__}: {e}{_line(e)}") from e


def _line(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return ""  # its own text has file and line
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({last.filename}, line {last.lineno})"


def source_hash(thing: type | FunctionType) -> str | None:
    """sha256 over the files that `thing` comes from: its module, and those of the user's own that it uses.

    None for posttrain's own code, for installed packages, and where there is no source. Of a thing defined in
    a script or notebook (`__main__`) its own text alone counts. What counts is the text as it was when this
    process first saw the module: that is the code that runs, whatever has become of the file since.
    """
    if thing.__module__ == "__main__":
        try:
            return _sha256(inspect.getsource(thing).encode())
        except (OSError, TypeError):
            return None
    module = sys.modules.get(thing.__module__)
    if module is None or _own_file(module) is None:
        return None
    texts = sorted((used.__name__, _text_hash(used)) for used in _reached(module))
    return _sha256(repr(texts).encode())


def _reached(first: ModuleType) -> list[ModuleType]:
    """The module, and every one of the user's own that it or another of them has something from."""
    reached, waiting = {first.__name__: first}, [first]
    while waiting:
        for module in _used_by(waiting.pop()):
            if module.__name__ not in reached and _own_file(module) is not None:
                reached[module.__name__] = module
                waiting.append(module)
    return list(reached.values())


def _used_by(module: ModuleType) -> Iterator[ModuleType]:
    for value in list(vars(module).values()):
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        used = sys.modules.get(name) if isinstance(name, str) else None
        if used is not None:
            yield used


def _own_file(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    if not file or not file.endswith(".py") or module.__name__.partition(".")[0] == "posttrain":
        return None
    path = Path(file).resolve()
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return None if installed or path.is_relative_to(_STDLIB) else path


_STDLIB = Path(sysconfig.get_paths()["stdlib"]).resolve()


def _text_hash(module: ModuleType) -> str:
    """Of the module's file, as it was when this process first saw the module as it is loaded now."""
    spec, digest = _SEEN.get(module.__name__, (None, ""))
    file = _own_file(module)
    if file is None:
        return ""
    if not digest or spec is not module.__spec__:
        digest = _sha256(file.read_bytes())
        _SEEN[module.__name__] = (module.__spec__, digest)
    return digest


def _sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
