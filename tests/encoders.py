"""Tiny encoders of many architectures with random weights, each with a tokenizer of its kind, and what is said of them.

`docs/encoders.md` holds the table that `table` makes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_WORDS = "the quick brown fox argues against a lazy dog taxes rise and fall with votes point counter query passage : !"
_LENGTH = 48
"""Positions of the encoders."""


@dataclass(frozen=True)
class Kind:
    """An architecture, and what the program does with it."""

    title: str
    example: str
    """A model of it that people use."""
    model: str
    """The class in transformers."""
    settings: dict[str, Any]
    """Of its config, beside `_SIZES`."""
    tokenizer: str = "bert"
    pooling: str = "pooler"
    """What model.pooling auto takes without a statement."""
    attention: str = "fused"
    remarks: str = ""


_SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
_TWO_LAYERS = {"num_hidden_layers": 2}
_POSITIONS = {"max_position_embeddings": _LENGTH}
_ROBERTA = {"max_position_embeddings": _LENGTH + 2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
_QWEN = {"num_key_value_heads": 1, "head_dim": 16}

KINDS = {
    "bert": Kind("BERT", "bert-base-uncased, bge", "BertModel", _SIZES | _POSITIONS),
    "roberta": Kind("RoBERTa", "roberta-base", "RobertaModel", _SIZES | _ROBERTA | _TWO_LAYERS, "roberta"),
    "xlm-roberta": Kind("XLM-R", "multilingual-e5, bge-m3", "XLMRobertaModel", _SIZES | _ROBERTA, "roberta"),
    "distilbert": Kind(
        "DistilBERT",
        "distilbert-base-uncased",
        "DistilBertModel",
        {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 48} | _POSITIONS,
        pooling="mean",
    ),
    "albert": Kind("ALBERT", "albert-base-v2", "AlbertModel", _SIZES | _POSITIONS | {"embedding_size": 16}),
    "electra": Kind(
        "ELECTRA",
        "electra-small-discriminator",
        "ElectraModel",
        _SIZES | _POSITIONS | {"embedding_size": 16},
        pooling="mean",
    ),
    "mpnet": Kind("MPNet", "all-mpnet-base-v2", "MPNetModel", _SIZES | _ROBERTA, "roberta", attention="eager"),
    "deberta-v2": Kind(
        "DeBERTa-v2, v3", "deberta-v3-base", "DebertaV2Model", _SIZES | _POSITIONS | _DEBERTA, "bert", "mean", "eager"
    ),
    "modernbert": Kind(
        "ModernBERT",
        "ModernBERT-base, gte-modernbert-base",
        "ModernBertModel",
        _SIZES | _POSITIONS | {"pad_token_id": 0, "local_attention": 8} | _TWO_LAYERS,
        pooling="mean",
        remarks="`model.dropout` is that of embeddings and MLPs, which its authors set to 0",
    ),
    "big_bird": Kind(
        "BigBird",
        "bigbird-roberta-base",
        "BigBirdModel",
        _SIZES | _POSITIONS,
        attention="eager",
        remarks="full attention instead of block-sparse, which would depend on the other texts of a batch",
    ),
    "longformer": Kind(
        "Longformer",
        "longformer-base-4096",
        "LongformerModel",
        _SIZES | _ROBERTA | {"attention_window": 8},
        "roberta",
        attention="eager",
        remarks="no token has global attention; batches are padded to the attention window (512), so short texts are slow",
    ),
    "nomic_bert": Kind("Nomic BERT", "nomic-embed-text-v1.5", "NomicBertModel", _SIZES | _POSITIONS, pooling="mean"),
    "qwen3": Kind(
        "Qwen3 (a decoder)",
        "Qwen3-Embedding-0.6B",
        "Qwen3Model",
        _SIZES | _POSITIONS | _QWEN,
        "qwen",
        "last",
        remarks="`model.pooling` cls is refused: its first token sees no other",
    ),
    "own": Kind(
        "Its own Python code",
        "gte-large-en-v1.5",
        "",
        {},
        pooling="mean",
        attention="eager",
        remarks="needs `--model.trust_remote_code true`, and `--trust-remote-code` where the trained model is used",
    ),
}

REFUSED = {
    "t5": ("Encoder-decoders (T5, BART)", "is an encoder-decoder (t5); expected a text encoder such as BERT"),
    "fnet": ("FNet, and whatever ignores the attention mask", "takes padding for text: it ignores the attention mask"),
}
"""Title, and what is said."""


def write(kind: str, folder: Path) -> Path:
    """Write the tiny encoder of a kind, and its tokenizer, into a folder."""
    torch.manual_seed(0)
    if kind == "own":
        write_own(folder)
    else:
        name = KINDS[kind].model
        settings = KINDS[kind].settings | {"initializer_range": 0.2, "vocab_size": len(vocabulary(KINDS[kind].tokenizer))}
        config = getattr(transformers, name.removesuffix("Model") + "Config")(**settings)
        getattr(transformers, name)(config).save_pretrained(folder)
    tokenizer(KINDS[kind].tokenizer).save_pretrained(folder)
    return folder


def write_refused(kind: str, folder: Path) -> Path:
    """Write the tiny model of a kind that is refused into a folder."""
    sizes: Any = {"vocab_size": len(vocabulary("bert"))}
    if kind == "t5":
        model: Any = transformers.T5Model(
            transformers.T5Config(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, **sizes)
        )
    else:
        model = transformers.FNetModel(
            transformers.FNetConfig(hidden_size=32, num_hidden_layers=1, intermediate_size=32, **sizes)
        )
    model.save_pretrained(folder)
    tokenizer("bert").save_pretrained(folder)
    return folder


_SPECIAL = {
    "bert": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "roberta": {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"},
    "qwen": {"pad": "<|end|>", "unk": "<|unk|>"},
}
_FRAME = {"bert": "[CLS] $A [SEP]", "roberta": "<s> $A </s>", "qwen": "$A <|end|>"}


def vocabulary(tokenizer: str) -> list[str]:
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = dict.fromkeys([*_WORDS.split(), *characters])
    return [*_SPECIAL[tokenizer].values(), *pieces, *(f"##{character}" for character in characters)]


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer with the special tokens of a kind, where that puts them."""
    ids = {token: number for number, token in enumerate(vocabulary(kind))}
    special = _SPECIAL[kind]
    backend = Tokenizer(models.WordPiece(ids, unk_token=special["unk"]))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    frame = _FRAME[kind]
    backend.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[(token, ids[token]) for token in special.values() if token in frame]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=_LENGTH,
        padding_side="left" if kind == "qwen" else "right",
        **{f"{name}_token": token for name, token in special.items()},
    )


_OWN_CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .own_parts import Mixer


class OwnConfig(PretrainedConfig):
    model_type = "own_mixer"

    def __init__(self, vocab_size=8, hidden_size=32, num_hidden_layers=2, **more):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        super().__init__(**more)


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = torch.nn.ModuleList(Mixer(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, input_ids, attention_mask=None, **more):
        states = self.embeddings(input_ids)
        for layer in self.layers:
            states = layer(states, attention_mask)
        return BaseModelOutput(last_hidden_state=states)
"""
_OWN_PARTS = """
import torch


class Mixer(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.dense = torch.nn.Linear(size, size)

    def forward(self, states, mask):
        mask = mask.unsqueeze(-1).to(states.dtype)
        mean = (states * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return states + torch.tanh(self.dense(states + mean))
"""


def write_own(folder: Path) -> None:
    """Write an encoder that transformers does not have, with the Python code that computes it."""
    from safetensors.torch import save_file

    settings = {
        "model_type": "own_mixer",
        "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "own_model.OwnConfig", "AutoModel": "own_model.OwnModel"},
        "vocab_size": len(vocabulary("bert")),
        "hidden_size": 32,
        "num_hidden_layers": 2,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "own_model.py").write_text(_OWN_CODE)
    (folder / "own_parts.py").write_text(_OWN_PARTS)
    weights = {"embeddings.weight": torch.randn(len(vocabulary("bert")), 32)}
    for number in range(2):
        weights |= {
            f"layers.{number}.dense.weight": torch.randn(32, 32) / 6,
            f"layers.{number}.dense.bias": torch.randn(32),
        }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def table() -> str:
    """What is said of the architectures, as a table in Markdown."""
    rows = ["| architecture | for example | attention | pooling `auto` takes, unless the model states one | remarks |"]
    rows.append("|---|---|---|---|---|")
    rows += [f"| {k.title} | {k.example} | {k.attention} | {k.pooling} | {k.remarks} |" for k in KINDS.values()]
    return "\n".join(rows)
