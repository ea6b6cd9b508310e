"""The modules and prompts of a sentence-transformers folder, as far as this program has their like.

modules.json lists the modules: a transformer, pooling, perhaps dense layers (see dense.py) and a scaling to length 1.
config_sentence_transformers.json holds the prompts. A module of any other kind is refused, so that nobody mistakes a part
of a model for the whole. Notices name what else is not used.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers.utils.hub import cached_file

from biencoder.errors import ModelError
from biencoder.model.dense import Dense

_POOLING_FLAG = "pooling_mode_"
_OURS = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls", "lasttoken": "last"}
"""The poolings of this program, by their old and new names in sentence-transformers."""

_ORDER = re.compile(r"(Transformer )?(Pooling )?(Dense )*(Normalize )?")
"""The kinds of modules that a text may pass through."""
_UNSEEN = "whether it states a pooling is not known: its modules.json is not in the cache and the hub cannot be asked now"


@dataclass(frozen=True, slots=True)
class SentenceModules:
    pooling: tuple[str, ...] = ()
    """The modes of the pooling module; several are concatenated. Empty without such a module."""
    dense: tuple[Dense, ...] = ()
    """What its pooled vectors pass through."""
    normalize: str = ""
    """The path of its scaling to length 1; empty if it has none."""
    notices: tuple[str, ...] = ()
    """Sentences about what training does not use."""
    prompts: tuple[str, str] = ("", "")
    """What sentence-transformers puts before queries, and before documents."""
    pools_prompt: bool = True
    """Whether the tokens of the prompt are pooled with the text's."""


def read_sentence_modules(source: str, name: str) -> SentenceModules:
    """The modules of a folder or a hub model; empty for a plain transformers model.

    Args:
        name: of the model, for messages.

    Raises:
        ModelError: a file is no valid JSON, or a module is of a kind that this program does not have.
    """
    modules = _read(source, "modules.json")
    if modules is None:
        unseen = not Path(source).is_dir() and try_to_load_from_cache(source, "modules.json") is None
        stated = _read(source, "1_Pooling/config.json") or {}
        return SentenceModules(_poolings(stated), notices=(_UNSEEN,) if unseen and not stated else ())
    places = {str(module["path"]): str(module["type"]).rsplit(".", 1)[-1] for module in modules}
    _check_kinds(places, name)
    path_of = {kind: path for path, kind in places.items()}
    stated = _read(source, f"{path_of.get('Pooling', '1_Pooling')}/config.json") or {}
    dense = [_read_dense(source, path, name) for path, kind in places.items() if kind == "Dense"]
    notices = []
    if (_read(source, "sentence_bert_config.json") or {}).get("do_lower_case"):
        notices.append("its texts were lower-cased (do_lower_case in sentence_bert_config.json); ours are not")
    prompts, about = _prompts(_read(source, "config_sentence_transformers.json") or {})
    return SentenceModules(
        _poolings(stated),
        tuple(dense),
        path_of.get("Normalize", ""),
        (*notices, *about),
        prompts,
        stated.get("include_prompt") is not False,
    )


def _check_kinds(places: dict[str, str], name: str) -> None:
    """Raise a ModelError if a text passes through a module that this program does not have."""
    known = ("Transformer", "Pooling", "Dense", "Normalize")
    for path, kind in places.items():
        if kind not in known:
            raise ModelError(
                f"{name} has a module {path} of kind {kind}, which this program does not have; take its line out of the "
                "model's modules.json to train without it, or choose another model"
            )
    if not _ORDER.fullmatch("".join(f"{kind} " for kind in places.values())):
        raise ModelError(
            f"{name} has its modules in the order {', '.join(places.values())}, expected {', '.join(known)}; choose another"
        )


def _read_dense(source: str, path: str, name: str) -> Dense:
    files = (_find(source, f"{path}/{file}") for file in ("model.safetensors", "pytorch_model.bin"))
    return Dense.of(path, _read(source, f"{path}/config.json") or {}, next(filter(None, files), None), name)


def _prompts(settings: dict[str, Any]) -> tuple[tuple[str, str], list[str]]:
    """The prompts of queries and of documents, as sentence-transformers chooses them; a sentence if there are only others.

    Raises:
        ModelError: the prompts are no texts by name.
    """
    stated = settings.get("prompts") or {}
    if not isinstance(stated, dict) or not all(isinstance(prompt, str | None) for prompt in stated.values()):
        raise ModelError("the prompts in config_sentence_transformers.json are no texts by name; copy or download it again")
    default = settings.get("default_prompt_name")
    query, document = (
        next((stated[name] or "" for name in (*names, default) if name in stated), "")
        for names in (("query",), ("document", "passage", "corpus"))
    )
    others = {name: prompt for name, prompt in sorted(stated.items()) if prompt}
    if not others or query or document:
        return (query, document), []
    examples = ", ".join(f"{name} {prompt!r}" for name, prompt in [*others.items()][:3])
    return ("", ""), [
        f"its prompts are of neither queries nor documents: {examples}; set model.query_prompt if they matter"
    ]


def our_pooling(stated: tuple[str, ...]) -> str | None:
    """This program's name of the stated pooling; None if it has no such pooling."""
    return _OURS.get(stated[0]) if len(stated) == 1 else None


def _poolings(config: dict[str, Any]) -> tuple[str, ...]:
    mode = config.get("pooling_mode")
    if mode:
        return (mode,) if isinstance(mode, str) else tuple(mode)
    flags = (name.removeprefix(_POOLING_FLAG) for name, value in config.items() if name.startswith(_POOLING_FLAG) and value)
    return tuple(flags)


def _read(source: str, name: str) -> Any:
    """The content of a JSON file from a folder, the hub or its cache; None if it does not exist."""
    file = _find(source, name)
    if file is None:
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError(f"{file} is no valid JSON; copy or download it again") from None
    if not isinstance(content, list if name == "modules.json" else dict):
        raise ModelError(f"{file} does not hold what sentence-transformers writes there; copy or download it again")
    return content


def _find(source: str, name: str) -> Path | None:
    """A file of a folder, of the hub or its cache; None if it does not exist."""
    file = cached_file(
        source,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if file is None else Path(file)
