"""Code in the user's own files, found by dotted path: importing it, and telling one version from another."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import resolve_name
from itertools import accumulate, chain
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from posttrain.common.config import nearest
from posttrain.common.errors import ConfigError


@dataclass(frozen=True)
class _Seen:
    """A module's text as it was when this process first saw the module as `spec` loads it. imports: names of
    what it imports, or may.
    """

    spec: ModuleSpec | None
    digest: str
    imports: tuple[str, ...]


_SEEN: dict[str, _Seen] = {}


def load_dotted(path: str, what: str) -> Any:
    """The thing that `pkg.module:Thing` names; modules are also looked for in the current folder.

    what: opens every message. Raises ConfigError that says where was looked, or what is wrong in the file.
    """
    name, _, attribute = path.partition(":")
    module = _import(name, what)
    _reached(module.__name__)  # now, for a file may be edited after it is loaded
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
    """sha256 over the files that `thing` comes from: its module, and those of the user's own that it imports,
    wherever in them the import stands.

    None for posttrain's own code, for installed packages, and where there is no source. Of a thing defined in
    a script or notebook (`__main__`) its own text alone counts. What counts is the text as it was when this
    process first saw the module: that is the code that runs, whatever has become of the file since.
    """
    if thing.__module__ == "__main__":
        try:
            return _sha256(inspect.getsource(thing).encode())
        except (OSError, TypeError):
            return None
    if thing.__module__ not in sys.modules or _seen(thing.__module__) is None:
        return None
    return _sha256(repr(sorted(_reached(thing.__module__).items())).encode())


def _reached(first: str) -> dict[str, str]:
    """Hashes of the module, and of every one of the user's own that it or another of them imports."""
    reached: dict[str, str] = {}
    waiting = [first]
    while waiting:
        name = waiting.pop()
        seen = None if name in reached else _seen(name)
        if seen is not None:
            reached[name] = seen.digest
            waiting += [*seen.imports, *_held_by(name)]
    return reached


def _held_by(name: str) -> Iterator[str]:
    """Modules that a loaded module has something from, imported by a statement or not."""
    for value in list(vars(sys.modules[name]).values()) if name in sys.modules else ():
        held = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(held, str) and held in sys.modules:
            yield held


def _seen(name: str) -> _Seen | None:
    """A module of the user's own, loaded or to be found; None for any other."""
    module = sys.modules.get(name)
    spec: ModuleSpec | None = _to_be_found(name) if module is None else getattr(module, "__spec__", None)
    place: str | None = getattr(spec, "origin", None) if module is None else getattr(module, "__file__", None)
    file = _own_file(name, place)
    if file is None:
        return None
    known = _SEEN.get(name)
    if known is None or spec is not known.spec:
        text = file.read_bytes()
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        known = _SEEN[name] = _Seen(spec, _sha256(text), _imports(text, package))
    return known


def _to_be_found(name: str) -> ModuleSpec | None:
    """Where a module that is not loaded yet would come from; nothing is imported to find out."""
    spec, path, parts = None, None, name.split(".")
    for end in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:end]), path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    return spec


def _imports(text: bytes, package: str) -> tuple[str, ...]:
    """Names of all that a text may import, by their whole names: `from a import b` gives a and a.b."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):
        return ()
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            with contextlib.suppress(ImportError):  # relative, beyond the package: fails where it is run
                base = resolve_name("." * node.level + (node.module or ""), package)
                names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    whole = [accumulate(name.split("."), "{}.{}".format) for name in names]  # a.b runs a, too
    return tuple(dict.fromkeys(chain.from_iterable(whole)))


def _own_file(name: str, file: str | None) -> Path | None:
    if not file or not file.endswith(".py") or name.partition(".")[0] == "posttrain":
        return None
    path = Path(file).resolve()
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return None if installed or path.is_relative_to(_STDLIB) else path


_STDLIB = Path(sysconfig.get_paths()["stdlib"]).resolve()


def _sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
