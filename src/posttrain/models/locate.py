"""A name of a model or tokenizer to the local folder that holds it."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from posttrain.common.errors import ConfigError

_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?(@[\w./-]+)?$")
_WEIGHTS, _CODE = "*.safetensors", "*.py"
_SMALL = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")


def find_model(ref: str, revision: str | None = None, code: bool = False) -> Path:
    """The folder with `config.json` (or, for a bare LoRA, `adapter_config.json`) that `ref` names.

    ref: a folder, an artifact with `model/` inside, or a hub id, alone or as `owner/name@revision`, which is
    fetched (weights as safetensors alone). code: fetch Python files too.
    Raises ConfigError where there is nothing, saying what is near.
    """
    folder = _find(ref, revision, [_WEIGHTS, *_SMALL, *([_CODE] if code else [])])
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file() or (candidate / "adapter_config.json").is_file():
            return candidate
    raise ConfigError(f"{folder} is not a model folder: it has no config.json ({_inside(folder)})")


def find_tokenizer(ref: str, revision: str | None = None, code: bool = False) -> Path:
    """The folder with a tokenizer that `ref` names: itself, its `tokenizer/` or its `model/`.

    Of a hub model no weights are fetched. Raises ConfigError as `find_model` does.
    """
    folder = _find(ref, revision, [*_SMALL, *([_CODE] if code else [])])
    for candidate in (folder, folder / "tokenizer", folder / "model"):
        if has_tokenizer(candidate):
            return candidate
    raise ConfigError(
        f"{folder} holds no tokenizer ({_inside(folder)}): name one with 'tokenizer', such as the model it "
        "was made for"
    )


def has_tokenizer(folder: Path) -> bool:
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tekken.json")
    return any((folder / name).is_file() for name in names)


def _find(ref: str, revision: str | None, patterns: list[str]) -> Path:
    path = Path(ref).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ConfigError(f"{path} is a file; a model is a folder")
    if not _HUB_ID.match(ref) or ref.startswith("."):
        raise ConfigError(f"there is no folder {path}{_near(path)}")
    name, _, named = ref.partition("@")
    return _from_hub(name, named or revision, patterns)


def _from_hub(ref: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(ref, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
        )
    except GatedRepoError as e:
        raise ConfigError(
            f"the hub's model '{ref}' is gated: accept its terms there, then log in (`hf auth login`)"
        ) from e
    except RevisionNotFoundError as e:
        raise ConfigError(f"the hub's model '{ref}' has no revision '{revision}'") from e
    except (RepositoryNotFoundError, HFValidationError) as e:
        raise ConfigError(f"'{ref}' is neither a folder here nor a model on the hub{_near(Path(ref))}") from e
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as e:
        raise ConfigError(
            f"'{ref}' is no folder here, and the hub cannot be reached to fetch it ({type(e).__name__}): go "
            f"online, or give the path of a local copy{_near(Path(ref))}"
        ) from e


def _near(path: Path) -> str:
    """The folders beside a missing one whose names come closest."""
    parent = path.parent if path.parent.is_dir() else None
    if parent is None:
        return f" (nor is there a folder {path.parent})"
    names = [child.name for child in parent.iterdir() if child.is_dir()]
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"; near it: {', '.join(str(parent / name) for name in close)}" if close else ""


def _inside(folder: Path) -> str:
    names = sorted(child.name + "/" * child.is_dir() for child in folder.iterdir())
    if not names:
        return "it is empty"
    return "it holds " + ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
