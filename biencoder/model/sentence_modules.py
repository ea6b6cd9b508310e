"""The modules and prompts of a sentence-transformers folder, and notices about those that training does not use.

modules.json lists the modules: a transformer, pooling, perhaps a dense layer and a scaling to length 1.
config_sentence_transformers.json holds the prompts. Training uses the transformer, the pooling and the prompts of
queries and documents. Notices name the rest, so that nobody mistakes the encoder for the whole model.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers.utils.hub import cached_file

from biencoder.errors import ModelError

_POOLING_FLAG = "pooling_mode_"
_OURS = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls", "lasttoken": "last"}
"""The poolings of this program, by their old and new names in sentence-transformers."""

_TAKEN = ("Transformer", "Pooling")
_NOTICES = {
    "Normalize": "its module {path} (scaling to length 1) is not taken over; model.normalize decides on that",
    "Dense": "its module {path} (a dense layer) is not taken over; a projection of our own starts in its place",
}
_UNSEEN = "whether it states a pooling is not known: its modules.json is not in the cache and the hub cannot be asked now"
_ANY_MODULE = "its module {path} ({kind}) is not taken over"


@dataclass(frozen=True, slots=True)
class SentenceModules:
    pooling: tuple[str, ...] = ()
    """The modes of the pooling module; several are concatenated. Empty without such a module."""
    notices: tuple[str, ...] = ()
    """Sentences about the modules and prompts that training does not use."""
    prompts: tuple[str, str] = ("", "")
    """What sentence-transformers puts before queries, and before documents."""
    pools_prompt: bool = True
    """Whether the tokens of the prompt are pooled with the text's."""


def read_sentence_modules(source: str) -> SentenceModules:
    """The modules of a folder or a hub model; empty for a plain transformers model.

    Raises:
        ModelError: a file is no valid JSON.
    """
    modules = _read(source, "modules.json")
    if modules is None:
        unseen = not Path(source).is_dir() and try_to_load_from_cache(source, "modules.json") is None
        stated = _read(source, "1_Pooling/config.json") or {}
        return SentenceModules(_poolings(stated), (_UNSEEN,) if unseen and not stated else ())
    places = {str(module["path"]): str(module["type"]).rsplit(".", 1)[-1] for module in modules}
    pooling_place = next((path for path, kind in places.items() if kind == "Pooling"), "1_Pooling")
    stated = _read(source, f"{pooling_place}/config.json") or {}
    notices = [
        _NOTICES.get(kind, _ANY_MODULE).format(path=path, kind=kind) for path, kind in places.items() if kind not in _TAKEN
    ]
    if (_read(source, "sentence_bert_config.json") or {}).get("do_lower_case"):
        notices.append("its texts were lower-cased (do_lower_case in sentence_bert_config.json); ours are not")
    prompts, about = _prompts(_read(source, "config_sentence_transformers.json") or {})
    return SentenceModules(_poolings(stated), (*notices, *about), prompts, stated.get("include_prompt") is not False)


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
    file = cached_file(
        source,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is None:
        return None
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError(f"{file} is no valid JSON; copy or download it again") from None
    if not isinstance(content, list if name == "modules.json" else dict):
        raise ModelError(f"{file} does not hold what sentence-transformers writes there; copy or download it again")
    return content
