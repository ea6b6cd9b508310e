"""Checks that a tokenizer fits its encoder, and that a corpus fits the tokenizer."""

from collections.abc import Sequence

from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from biencoder.data.records import Findings
from biencoder.errors import DataError, ModelError
from biencoder.rng import permutation

_SAMPLE, _SAMPLE_CHARACTERS = 1000, 1000
"""Texts that `check_corpus` tokenizes, the same ones on all ranks, and how much of each. This takes some tenths of a
second."""
_TOO_MANY, _MANY = 0.5, 0.05
"""Shares of unknown tokens above which a corpus is refused, and above which they become a finding."""


def load_tokenizer(source: str, name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a folder or of the hub.

    Args:
        name: of the model, for messages.
        trust_remote_code: whether Python code that the model brings along may run.

    Raises:
        ModelError: there is none, or it knows no words.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # parsers of many formats raise many kinds
        if "custom code" in str(error):
            raise  # `pretrained` has one message for all files of a model
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelError(f"the tokenizer of {name} cannot be loaded ({reason}); put a whole tokenizer.json there") from None
    if not tokenizer.is_fast:
        raise ModelError(f"{name} has no fast tokenizer (tokenizer.json)")
    if len(tokenizer) <= len(
        tokenizer.all_special_tokens
    ):  # transformers makes an empty tokenizer if its files are missing
        raise ModelError(
            f"{name} has no tokenizer: nothing but {len(tokenizer)} special tokens is known; put its tokenizer.json (or "
            "vocab.txt) there"
        )
    return tokenizer


def check_fit(tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel, name: str) -> None:
    """Raise a ModelError if the encoder lacks the embedding of a token."""
    embeddings = encoder.get_input_embeddings()
    if not isinstance(embeddings, nn.Embedding):
        raise ModelError(f"{name} is no text encoder ({encoder.config.model_type}); expected one such as BERT")
    rows, largest = embeddings.num_embeddings, max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise ModelError(
            f"the tokenizer of {name} has token ids up to {largest}, but its encoder embeds {rows} tokens; they are not of "
            "the same model: take the tokenizer that the encoder was trained with"
        )


def check_corpus(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, findings: Findings, *, root: str, name: str
) -> None:
    """Refuse a corpus most of whose tokens the model's tokenizer does not know; more than 5 % are a finding.

    Args:
        root: of the corpus, for the message.
        name: of the model, for the message.

    Raises:
        DataError: more than half of the tokens are unknown.
    """
    if tokenizer.unk_token_id is None or not texts:
        return  # a byte-level tokenizer knows every token
    places = permutation(seed=0, purpose="texts to look for unknown tokens", epoch=0, size=len(texts))[:_SAMPLE]
    looked_at = [texts[place][:_SAMPLE_CHARACTERS] for place in places]
    encoded = tokenizer(looked_at, add_special_tokens=False, verbose=False)["input_ids"]  # no word on their length
    unknown = [ids.count(tokenizer.unk_token_id) for ids in encoded]
    share = sum(unknown) / max(1, sum(len(ids) for ids in encoded))
    example = texts[places[unknown.index(max(unknown))]][:60]
    if share > _TOO_MANY:
        raise DataError(
            f"{share:.0%} of the tokens of data.root {root} are unknown to the tokenizer of {name} (a text that begins "
            f"{example!r}, say); choose a model that knows the corpus's language"
        )
    if share > _MANY:
        findings.add(f"tokens unknown to the model's tokenizer ({share:.0%} of all looked at)", example, count=sum(unknown))
