"""llama.cpp as a peer, through its Python package's plain C calls: a file, a context, batches of given ids."""

from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np


class Llama:
    """One model and one context for `sequences` sequences of `context` tokens, flash attention on."""

    def __init__(self, path: Path, sequences: int, context: int, threads: int):
        llama_cpp.llama_log_set(_QUIET, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_seq_max = sequences * context, sequences
        options.n_batch = options.n_ubatch = max(512, sequences)
        options.n_threads = options.n_threads_batch = threads
        options.flash_attn_type = 1
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        assert self._context, f"llama.cpp cannot open {path}"
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(sequences * context, 0, 1)

    def forget(self) -> None:
        """Empty the cache."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)

    def decode(self, rows: Sequence[Sequence[int]], start: int, every: bool = False) -> None:
        """Compute equally long ids of all sequences at positions from `start`; logits of the last, or of every."""
        batch, at = self._batch, 0
        for sequence, ids in enumerate(rows):
            for i, token in enumerate(ids):
                batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, start + i, 1
                batch.seq_id[at][0] = sequence
                batch.logits[at] = every or i == len(ids) - 1
                at += 1
        batch.n_tokens = at
        code = llama_cpp.llama_decode(self._context, batch)
        assert code == 0, f"llama_decode: {code}"

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """(len(ids), V) of one fresh sequence."""
        self.forget()
        self.decode([ids], 0, every=True)
        found = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(found, (len(ids), self.vocabulary)).copy()


@llama_cpp.llama_log_callback
def _QUIET(level, text, data):
    pass
