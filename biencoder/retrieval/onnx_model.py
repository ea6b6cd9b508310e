"""A trained model as ONNX graphs, which make similarity embeddings of tokens without PyTorch and without this program.

    folder/   model.onnx                  the graph, if one encoder serves both sides
              query.onnx candidate.onnx   one graph for each side, if the sides have their own encoders
              *.int8.onnx                 the same with 8-bit weights, if asked for
              tokenizer.json              truncates and pads by itself
              onnx.json                   for each side the graph, its output, and its prompt if it has one
              README.md                   how to use it

Graphs take `input_ids` and `attention_mask` of any batch size and length. Only this module needs the packages onnx,
onnxscript and onnxruntime.

N: texts, U: texts of a batch, L: tokens, D: similarity embedding, H: hidden size.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from biencoder.config.schema import EvalConfig, ModelConfig
from biencoder.data.tokens import Batch, Tokens, tokenize, tokenize_sides
from biencoder.errors import ConfigError, ModelError
from biencoder.model.bi_encoder import BiEncoder, Sides, Tower, Vectors
from biencoder.model.folder import load_model
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.retrieval.trained_model import encode_batches

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FACTS = "onnx.json"
_SIDES = ("query", "candidate")
_INPUTS = ("input_ids", "attention_mask")
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def need_packages() -> None:
    """Raise a ConfigError if a package that this module needs is not installed."""
    missing = []
    for name in _PACKAGES:
        try:
            import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ConfigError(f"ONNX needs the packages {', '.join(missing)}; pip install 'biencoder[onnx]'")


def write_onnx(folder: Path, model_folder: Path, *, int8: bool, trust_remote_code: bool = False, dim: int = 0) -> None:
    """Write the model's graphs and its tokenizer into an empty folder.

    Args:
        int8: write the graphs with 8-bit weights as well.
        trust_remote_code: whether Python code that the model's folder holds may run.
        dim: of the embeddings, their first ones; 0: all.

    Raises:
        ModelError: there is no model, or its encoder cannot be exported.
    """
    model, tokenizer, config = load_model(model_folder, trust_remote_code=trust_remote_code, dim=dim)
    for tower in model.towers:  # eager attention exports to the simplest graph
        tower.encoder.set_attn_implementation("eager")  # type: ignore[operator, union-attr]  # a Tower's encoder
    example = tokenize(["one", "one and another"], tokenizer, max_length=config.max_length).batch(np.arange(2))
    places = _places(model)
    with _quiet():
        for name in dict.fromkeys(graph for graph, _ in places.values()):
            sides = [side for side in _SIDES[: len(model.towers)] if places[side][0] == name]
            graph = _Graph([model.towers[_SIDES.index(side)] for side in sides])  # type: ignore[misc]  # towers
            try:
                _trace(graph.eval(), example, [places[side][1] for side in sides], folder / f"{name}.onnx")
            except RuntimeError as error:  # the base class of torch.onnx.OnnxExporterError
                reason = " ".join(str(error).split())[:300]
                raise ModelError(f"the encoder in {model_folder} cannot be written as ONNX: {reason}") from None
            if int8:
                _quantize(folder / f"{name}.onnx", folder / f"{name}.int8.onnx")
    _save_tokenizer(folder, tokenizer, config)
    prompts = dict(zip(_SIDES, config.prompts, strict=True))
    facts = {
        side: {"graph": graph, "output": output, **({"prompt": prompts[side]} if prompts[side] else {})}
        for side, (graph, output) in places.items()
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(config, places), encoding="utf-8")


def _places(model: BiEncoder) -> dict[str, tuple[str, str]]:
    """For each side the name of its graph, and of its output there."""
    if model.shared:
        return dict.fromkeys(_SIDES, ("model", "sentence_embedding"))
    if model.one_encoder:
        return {side: ("model", f"{side}_embedding") for side in _SIDES}
    return {side: (side, "sentence_embedding") for side in _SIDES}


class _Graph(nn.Module):
    """The towers of one encoder as a function of tensors that returns their embeddings (U, D)."""

    def __init__(self, towers: Sequence[Tower]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)

    def forward(self, input_ids_UL: torch.Tensor, attention_mask_UL: torch.Tensor) -> tuple[torch.Tensor, ...]:
        towers: list[Tower] = list(self.towers)  # type: ignore[arg-type]
        pooled_UH = towers[0].pool(Tokens(input_ids_UL, attention_mask_UL))
        return tuple(tower.project(pooled_UH).embedding for tower in towers)


def _trace(graph: _Graph, example: Tokens, outputs: list[str], file: Path) -> None:
    any_size = {0: "batch", 1: "length"}
    program = torch.onnx.export(
        graph,
        (example.input_ids_UL, example.attention_mask_UL),
        dynamo=True,
        input_names=list(_INPUTS),
        output_names=outputs,
        dynamic_shapes=(any_size, any_size),
        verbose=False,
    )
    assert program is not None
    program.save(file)


def _quantize(file: Path, to: Path) -> None:
    """Quantize the weights of matrices and embeddings to 8 bits; activations are quantized at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(file, to, weight_type=QuantType.QInt8, per_channel=True)


def _save_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
    backend: Any = tokenizer.backend_tokenizer
    backend.enable_truncation(config.max_length)
    backend.enable_padding(pad_id=tokenizer.pad_token_id or 0, pad_token=tokenizer.pad_token or "[PAD]")
    backend.save(str(folder / "tokenizer.json"))


def _readme(config: ModelConfig, places: dict[str, tuple[str, str]]) -> str:
    uses = {"arguments": places["query"], "texts": places["candidate"]}
    examples = [["an argument"], ["a text", "another text"]]
    texts = [json.dumps([prompt + text for text in some]) for prompt, some in zip(config.prompts, examples, strict=True)]
    lines = [
        f'{name} = embed("{graph}.onnx", "{output}", {some})'
        for (name, (graph, output)), some in zip(uses.items(), texts, strict=True)
    ]
    return f"""# Counter-argument bi-encoder, for ONNX Runtime

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")  # cuts at {config.max_length} tokens, and pads


def embed(graph, output, texts):
    encoded = tokenizer.encode_batch(texts)
    input_ids, attention_mask = (np.array([getattr(e, name) for e in encoded]) for name in ("ids", "attention_mask"))
    inputs = {{"input_ids": input_ids, "attention_mask": attention_mask}}
    return onnxruntime.InferenceSession(graph).run([output], inputs)[0]


{lines[0]}
{lines[1]}
distances = np.linalg.norm(arguments[:, None] - texts[None], axis=-1)  # the nearest text is the best counter-argument
```
"""


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """The graphs of a folder in ONNX Runtime, on the CPU, with as many threads as PyTorch has."""

    query: "InferenceSession"
    candidate: "InferenceSession"
    outputs: tuple[str, str]
    tokenizer: PreTrainedTokenizerBase
    config: ModelConfig

    @classmethod
    def load(cls, folder: Path, tokenizer: PreTrainedTokenizerBase, config: ModelConfig, *, int8: bool) -> "OnnxModel":
        """
        Args:
            tokenizer, config: of the model that was exported.
        """
        from onnxruntime import InferenceSession, SessionOptions

        options = SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        names = {facts[side]["graph"] for side in _SIDES}
        sessions = {
            name: InferenceSession(folder / f"{name}{'.int8' if int8 else ''}.onnx", options) for name in sorted(names)
        }
        query, candidate = (sessions[facts[side]["graph"]] for side in _SIDES)
        return cls(query, candidate, (facts["query"]["output"], facts["candidate"]["output"]), tokenizer, config)

    def embed_texts(self, texts: Sequence[str], text_ids_N: npt.NDArray[np.int64]) -> EmbeddedTexts:
        """Embeddings of the texts with these (ascending) ids; pooled vectors are empty."""

        def encode(batch: Batch) -> list[torch.Tensor]:
            inputs, query, candidate = _arrays(batch), self.outputs[0], self.outputs[1]
            if self.query is not self.candidate or batch.candidate:
                for_candidate = _arrays(batch.candidate or batch)
                outputs = [self.query.run([query], inputs)[0], self.candidate.run([candidate], for_candidate)[0]]
            else:
                outputs = self.query.run(list(dict.fromkeys(self.outputs)), inputs)
            embeddings = [torch.from_numpy(embedding_UD) for embedding_UD in outputs]
            no_pooled = embeddings[0].new_empty(len(embeddings[0]), 0)
            queries, candidates = Vectors(embeddings[0], no_pooled), Vectors(embeddings[-1], no_pooled)
            return Sides(queries, queries if len(outputs) == 1 else candidates).parts()

        some, limit = [texts[text_id] for text_id in text_ids_N], self.config.max_length
        tokens = tokenize_sides(some, self.tokenizer, max_length=limit, prompts=self.config.prompts)
        parts = encode_batches(encode, tokens, np.arange(len(text_ids_N)), EvalConfig().batch_tokens_on("cpu"))
        return EmbeddedTexts.whole(text_ids_N, *Sides.of(parts))


def _arrays(batch: Batch) -> dict[str, npt.NDArray[np.int64]]:
    """The inputs of a graph, which takes padded texts."""
    assert isinstance(batch, Tokens)
    return dict(zip(_INPUTS, (batch.input_ids_UL.numpy(), batch.attention_mask_UL.numpy()), strict=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence harmless warnings of the exporter and the quantizer, for instance about optional packages."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
