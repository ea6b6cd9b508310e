"""Every architecture of the table trains a step, is measured, exported, and loaded here and in sentence-transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from biencoder.config.paths import PROJECT_ROOT
from biencoder.config.schema import LossConfig, ModelConfig
from biencoder.data import Split
from biencoder.data.records import Pair, Record, Role
from biencoder.data.tokens import tokenize
from biencoder.distributed.world import World
from biencoder.errors import ModelError
from biencoder.evaluation import evaluate_split
from biencoder.model.batch import triplet_batch
from biencoder.model.bi_encoder import Scores, Sides, build_model
from biencoder.model.folder import load_model, save_model
from biencoder.model.pretrained import Pretrained, load_pretrained
from biencoder.retrieval.embedders import load_models
from biencoder.retrieval.trained_model import TrainedModel
from biencoder.training.loss import combined_loss
from tests import encoders

TEXTS = [f"the {word} fox argues {'against taxes ' * (number % 4)}{number}" for number, word in enumerate("abcdefghijkl")]
PAIRS = np.arange(6)


def _record(kind: Role, number: int) -> Record:
    return Record("", "", "", str(number), kind, TEXTS[number], "texts", number)


PARTS = tuple(Pair(_record("point", number), _record("counter", number + 6)) for number in range(6))
SPLIT = Split("training", PARTS, PAIRS, PAIRS + 6)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(params=encoders.KINDS)
def kind(request: pytest.FixtureRequest, folders: Path) -> str:
    kind: str = request.param
    if not (folders / kind).exists():
        encoders.write(kind, folders / kind)
    return kind


def config_of(folder: Path, **settings: object) -> ModelConfig:
    own = folder.name == "own"
    given = {"name": str(folder), "max_length": 40, "embedding_dim": 16, "trust_remote_code": own, "dropout": 0.1}
    return ModelConfig(**{**given, **settings})  # type: ignore[arg-type]


def train_a_step(config: ModelConfig, folder: Path) -> Pretrained:
    """Train one step, and save the model into a folder."""
    pretrained = load_pretrained(config)
    tokens = tokenize(TEXTS, pretrained.tokenizer, max_length=config.max_length)
    model = build_model(config, pretrained, seed=0).train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    batch = triplet_batch(
        PAIRS,
        SPLIT,
        np.roll(PAIRS + 6, 1)[:, None],
        tokens,
        one_encoder=True,
        rivals=False,
        pass_cost=20.0,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scores = model(batch)
    assert isinstance(scores, Scores)
    combined_loss(scores, LossConfig()).total.backward()
    optimizer.step()
    after = model.state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > len(before) / 2
    save_model(folder, model, after, pretrained.tokenizer, config, card="# card")
    return pretrained


def test_it_trains_is_measured_exported_and_loaded_again(kind: str, folders: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    pretrained = train_a_step(config_of(folders / kind), tmp_path / "model")
    row, own = encoders.KINDS[kind], kind == "own"
    assert pretrained.pooling == row.pooling
    assert pretrained.encoder.config._attn_implementation == {"fused": "sdpa"}.get(row.attention, row.attention)
    assert any("eager attention takes more time" in notice for notice in pretrained.notices) == (row.attention == "eager")
    trained = TrainedModel.load(tmp_path / "model", trust_remote_code=own)
    embedded = trained.embed_texts(TEXTS, np.arange(12))
    result = evaluate_split(SPLIT, embedded, trained.classifier, top_k=3, world=World.alone())
    assert result.num_queries == 6
    theirs = SentenceTransformer(str(tmp_path / "model"), trust_remote_code=own, device="cpu")
    torch.testing.assert_close(
        torch.from_numpy(theirs.encode(TEXTS)), embedded.query.embedding, rtol=1e-5, atol=1e-5, check_dtype=False
    )
    assert embedded.query.embedding.std(0).mean() > 1e-3  # they are not all the same


def test_a_text_has_one_vector_whatever_else_is_in_the_batch(kind: str, folders: Path) -> None:
    model = TrainedModel.pretrained(config_of(folders / kind, embedding_dim=0))
    together = model.embed_texts(TEXTS, np.arange(12)).query.pooled
    alone = torch.cat([model.embed_texts([text], np.arange(1)).query.pooled for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", encoders.REFUSED)
def test_what_cannot_work_is_said_in_one_sentence(kind: str, tmp_path: Path) -> None:
    folder = encoders.write_refused(kind, tmp_path / kind)
    with pytest.raises(ModelError) as raised:
        load_pretrained(ModelConfig(name=str(folder), max_length=16))
    assert encoders.REFUSED[kind][1] in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_table_in_the_documents_is_that_of_the_tests() -> None:
    page = (PROJECT_ROOT / "docs" / "encoders.md").read_text()
    assert encoders.table() in page
    assert all(title in page for title, _ in encoders.REFUSED.values())


def test_each_side_with_an_encoder_of_its_own(folders: Path, tmp_path: Path) -> None:
    """A twin is made, saved and read for an encoder of other parts than BERT's."""
    from sentence_transformers import SentenceTransformer

    for kind in ("mpnet", "albert"):
        config = config_of(encoders.write(kind, folders / f"{kind}-sides"), sides="encoders")
        pretrained = load_pretrained(config)
        model = build_model(config, pretrained, seed=0).eval()
        save_model(tmp_path / kind, model, model.state_dict(), pretrained.tokenizer, config, card="# card")
        embedded = TrainedModel.load(tmp_path / kind).embed_texts(TEXTS, np.arange(12))
        theirs = SentenceTransformer(str(tmp_path / kind), device="cpu")
        ours = torch.from_numpy(theirs.encode_document(TEXTS))
        torch.testing.assert_close(ours, embedded.candidate.embedding, rtol=1e-5, atol=1e-5)


def test_a_decoder_is_not_pooled_by_its_first_token(folders: Path, tmp_path: Path) -> None:
    folder = encoders.write("qwen3", tmp_path / "qwen3")
    with pytest.raises(ModelError, match=r"model.pooling is cls, but the first token of .* sees no other"):
        load_pretrained(config_of(folder, pooling="cls"))
    assert "its last token sees all others" in " ".join(load_pretrained(config_of(folder)).notices)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    (folder / "modules.json").write_text('[{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]')
    stated = load_pretrained(config_of(folder))
    assert (stated.pooling, stated.notices) == ("last", ())


def test_code_of_a_model_runs_only_where_that_is_allowed(folders: Path, tmp_path: Path) -> None:
    folder = encoders.write("own", tmp_path / "own")
    with pytest.raises(ModelError, match=r"read that code and set model.trust_remote_code = true"):
        load_pretrained(config_of(folder, trust_remote_code=False))
    pretrained = train_a_step(config_of(folder), tmp_path / "model")
    assert any("its own Python code runs" in notice for notice in pretrained.notices)
    assert {path.name for path in (tmp_path / "model").glob("*.py")} >= {"own_model.py", "own_parts.py"}
    for load in (lambda: load_model(tmp_path / "model"), lambda: load_models([str(tmp_path / "model")])):
        with pytest.raises(ModelError, match=r"give --trust-remote-code"):
            load()
    model, _, _ = load_model(tmp_path / "model", trust_remote_code=True)
    assert isinstance(model.eval()(tokenize(TEXTS, pretrained.tokenizer, max_length=40).batch(PAIRS)), Sides)
