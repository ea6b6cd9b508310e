"""A corpus to search: its texts, their vectors as candidates, and an index over these. It lives in memory, or in a folder
that is mapped into memory when it is opened:

    folder/   index.json      SHA-256 of the model and of the texts; whether the texts were cleaned; the size of every
                              other file
              texts.utf8      the texts, one after the other
              ends.npy        the position in bytes at which each text ends
              embedding.npy   similarity embeddings
              pooled.npy      pooled vectors, if a pair classifier uses them
              index.faiss     not for `flat`

flat   exact: a search compares the query with every vector
ivf    k-means cells, 4 sqrt(N) of them; a search visits 32 (Jégou, Douze, Schmid 2011)
hnsw   a navigable small-world graph of 16 neighbours (Malkov, Yashunin 2018): slow to build, quickest to search

ivf and hnsw keep 8 bits for each dimension. The distances of the rows that they return are computed again with the vectors
themselves (see nearest.py), so distances and their order are exact. Nothing in the folder is a pickle.

N: texts, T: their bytes, Q: queries, k: rows for each, D: similarity embedding, H: hidden size.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import faiss
import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from biencoder.config.paths import typed
from biencoder.data.ids import spread_over
from biencoder.data.texts import texts_sha256
from biencoder.errors import DataError
from biencoder.model.bi_encoder import Vectors
from biencoder.model.whole_folder import whole_folder
from biencoder.retrieval.faiss_index import FlatIndex, num_cells
from biencoder.retrieval.hubness import NEIGHBOURS, hubness_of
from biencoder.retrieval.nearest import NegativeIndex, Rows, nearest_allowed

IndexKind = Literal["flat", "ivf", "hnsw"]
KINDS: tuple[IndexKind, ...] = get_args(IndexKind)
FACTS = "index.json"
_COMMAND = " ".join(typed("index"))
_CHUNK_TEXTS = 16_384
_RECALL_AT, _RECALL_QUERIES = 10, 200


@dataclass(frozen=True, slots=True)
class SearchIndex:
    """Texts that can be searched."""

    text: Callable[[int], str]
    """Gives the text of a row."""
    embedding_ND: npt.NDArray[np.float32]
    pooled_NH: npt.NDArray[np.float32]
    """Empty (H = 0) if no pair classifier uses them."""
    index: NegativeIndex
    clean: bool
    """Whether the texts were cleaned; queries are treated alike."""

    @classmethod
    def in_memory(cls, texts: Sequence[str], vectors: Vectors, *, clean: bool) -> "SearchIndex":
        """An exact index in memory.

        Args:
            texts, clean: as `load_texts` returns and takes them.
        """
        embedding_ND, pooled_NH = (part.numpy() for part in vectors)
        return cls(texts.__getitem__, embedding_ND, pooled_NH, FlatIndex(embedding_ND), clean)

    def hubness(self, rows_k: Rows) -> npt.NDArray[np.float32]:
        """The hubness of the texts of these rows among all of the index, copies counted once: see hubness.py."""
        texts = [self.text(row) for row in rows_k.tolist()]

        def is_another(queries_Q: Rows, rows_Qk: Rows) -> npt.NDArray[np.bool_]:
            return np.array(
                [
                    [row >= 0 and self.text(row) != texts[query] for row in rows]
                    for query, rows in zip(queries_Q, rows_Qk.tolist(), strict=True)
                ]
            )

        _, distance_kn = nearest_allowed(
            self.index, self.embedding_ND, self.embedding_ND[rows_k], is_another, count=NEIGHBOURS
        )
        return hubness_of(distance_kn)


class CompactIndex:
    """A FAISS index of kind ivf or hnsw."""

    exact = False

    def __init__(self, index: faiss.Index) -> None:
        self._index = index

    def search(self, queries_QD: npt.NDArray[np.float32], k: int) -> Rows:
        _, rows = self._index.search(queries_QD, k)
        rows_Qk: Rows = rows
        return rows_Qk


@dataclass(frozen=True, slots=True)
class Facts:
    """The content of index.json."""

    kind: IndexKind
    num_texts: int
    model: str
    """Folder of the model that made the vectors."""
    model_sha256: str
    texts_sha256: str
    clean: bool
    """Whether the texts were cleaned."""
    recall: float
    """Share of the 10 nearest texts that a search finds, measured with up to 200 texts as queries; 1 for an exact index."""
    num_bytes: dict[str, int]
    """The size of every other file."""


def write_index(
    folder: Path,
    texts: Sequence[str],
    *,
    kind: IndexKind,
    clean: bool,
    model: str,
    model_sha256: str,
    candidates: Callable[[Sequence[str]], Vectors],
    queries: Callable[[Sequence[str]], Vectors],
) -> Facts:
    """Embed and index these texts, and write the folder completely or not at all.

    Args:
        texts, clean: as `load_texts` returns and takes them.
        candidates, queries: embed texts as candidates and as queries.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        with whole_folder(folder) as fresh:
            _write_texts(fresh, texts)
            embedding_ND = _write_vectors(fresh, texts, candidates)
            recall = 1.0
            if kind != "flat":
                index = build_compact(embedding_ND, kind)
                faiss.write_index(index, str(fresh / "index.faiss"))
                sample = [texts[row] for row in spread_over(len(texts), _RECALL_QUERIES)]
                recall = measured_recall(CompactIndex(index), embedding_ND, queries(sample).embedding.numpy())
            sizes = {path.name: path.stat().st_size for path in sorted(fresh.iterdir())}
            facts = Facts(kind, len(texts), model, model_sha256, texts_sha256(texts), clean, recall, sizes)
            (fresh / FACTS).write_text(json.dumps(asdict(facts), indent=2) + "\n", encoding="utf-8")
    except (OSError, RuntimeError) as error:  # FAISS raises the latter
        raise DataError(f"the index cannot be written to {folder}: {_reason(error)}") from None
    return facts


def _write_texts(folder: Path, texts: Sequence[str]) -> None:
    ends_N = np.zeros(len(texts), dtype=np.int64)
    with (folder / "texts.utf8").open("wb") as file:
        for row, text in enumerate(texts):
            file.write(text.encode())
            ends_N[row] = file.tell()
    np.save(folder / "ends.npy", ends_N)


def _write_vectors(
    folder: Path, texts: Sequence[str], candidates: Callable[[Sequence[str]], Vectors]
) -> npt.NDArray[np.float32]:
    """Write the vectors in chunks, so that only one chunk is in memory. Returns the embeddings, mapped from their file."""
    arrays: list[npt.NDArray[np.float32]] = []
    for start in range(0, len(texts), _CHUNK_TEXTS):
        chunk = texts[start : start + _CHUNK_TEXTS]
        parts = [part.numpy() for part in candidates(chunk)]
        if not arrays:
            arrays = [
                np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (len(texts), part.shape[1]))
                for name, part in zip(Vectors._fields, parts, strict=True)
                if part.shape[1]
            ]
        for array, part in zip(arrays, parts, strict=False):  # empty pooled vectors are not written
            array[start : start + len(chunk)] = part
    return arrays[0]


def build_compact(vectors_ND: npt.NDArray[np.float32], kind: IndexKind) -> Any:
    """A FAISS index of these vectors, ivf or hnsw."""
    N, D = vectors_ND.shape
    index: Any  # FAISS declares no types for the parts of an index
    if kind == "hnsw":
        index = faiss.index_factory(D, "HNSW16,SQ8")
        index.hnsw.efConstruction, index.hnsw.efSearch = 80, 64
    else:
        index = faiss.index_factory(D, f"IVF{num_cells(N)},SQ8")
        index.cp.max_points_per_centroid = 64  # a sample of this size finds cells as good in a quarter of the time
        index.nprobe = 32
    index.train(vectors_ND)
    index.add(vectors_ND)
    return index


def measured_recall(
    index: NegativeIndex, vectors_ND: npt.NDArray[np.float32], queries_QD: npt.NDArray[np.float32]
) -> float:
    """Share of the 10 nearest vectors that a search finds."""

    def allow_all(_: Rows, rows_Qk: Rows) -> npt.NDArray[np.bool_]:
        return rows_Qk >= 0

    count = min(_RECALL_AT, len(vectors_ND))
    true_Qk, found_Qk = (
        nearest_allowed(searched, vectors_ND, queries_QD, allow_all, count=count)[0]
        for searched in (FlatIndex(vectors_ND), index)
    )
    return float((true_Qk[:, :, None] == found_Qk[:, None, :]).any(2).mean())


def read_facts(folder: Path) -> Facts:
    """The facts about the index in this folder.

    Raises:
        DataError: the folder holds no index, or a damaged one.
    """
    file = folder / FACTS
    if not file.is_file():
        raise DataError(f"{folder} is no index: it has no {FACTS}; make one with {_COMMAND}")
    try:
        return TypeAdapter(Facts).validate_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from None


def check_texts(folder: Path, facts: Facts, texts: Sequence[str]) -> None:
    """Raise a DataError if the index in this folder was made of other texts."""
    if texts_sha256(texts) != facts.texts_sha256:
        raise DataError(
            f"the index in {folder} is of other texts ({facts.num_texts:,}) than data.root holds now ({len(texts):,}); "
            f"make it again with {_COMMAND}"
        )


def open_index(folder: Path, facts: Facts, *, model_sha256: str) -> SearchIndex:
    """Map the index in this folder into memory.

    Args:
        model_sha256: the hash of the model that embeds the queries.

    Raises:
        DataError: another model made the index, or it is damaged.
    """
    if model_sha256 != facts.model_sha256:
        raise DataError(
            f"the index in {folder} was made by a model with other weights (that was in {facts.model} then); make it "
            f"again with {_COMMAND}, or give --model the model that it was made by"
        )
    try:
        for name, size in facts.num_bytes.items():
            if (folder / name).stat().st_size != size:
                raise ValueError(f"{name} has not the {size:,} bytes that were written")
        N, names = facts.num_texts, facts.num_bytes
        bytes_T = np.memmap(folder / "texts.utf8", mode="r")
        ends_N, embedding_ND = _load(folder, "ends"), _load(folder, "embedding")
        pooled_NH = _load(folder, "pooled") if "pooled.npy" in names else np.empty((N, 0), dtype=np.float32)
        index: NegativeIndex = FlatIndex(embedding_ND)
        if facts.kind != "flat":
            mapped = faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_MMAP_IFC)
            if (mapped.ntotal, mapped.d) != embedding_ND.shape:
                raise ValueError(f"index.faiss holds {mapped.ntotal:,} vectors of {mapped.d} dimensions")
            index = CompactIndex(mapped)
        if not len(ends_N) == len(embedding_ND) == len(pooled_NH) == N or ends_N[-1] != len(bytes_T):
            raise ValueError(f"its files do not hold {N:,} texts each")
    except (OSError, ValueError, RuntimeError) as error:
        raise _damaged(folder, error) from None

    def text(row: int) -> str:
        return bytes_T[ends_N[row - 1] if row else 0 : ends_N[row]].tobytes().decode()

    return SearchIndex(text, embedding_ND, pooled_NH, index, facts.clean)


def _load(folder: Path, name: str) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return array


def _damaged(folder: Path, error: Exception) -> DataError:
    return DataError(f"the index in {folder} is damaged: {_reason(error)}; make it again with {_COMMAND}")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{Path(error.filename).name}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())[:300]
