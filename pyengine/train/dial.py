"""One dial: `model.depth` decides every size and rate that the settings leave open (0, or not given).

| what | rule | depth 4 | depth 12 |
|---|---|---|---|
| channels, heads, feed-forward | `ModelConfig.from_depth`: 32 a layer, and the rest from the channels | 128 | 384 |
| peak rates of AdamW, each stage | that of depth 4, over the root of how much wider the model is | 0.01 | 0.00577 |
| peak rates of Muon, each stage | the same for all: its updates have the scale of their matrix | 0.02 | 0.02 |
| tokens of a pre-training step | as the square of depth, in powers of two | 2,048 | 16,384 |
| tokens of pre-training | 20 a parameter, but at most `pretrain.epochs` passes (`pretrain.steps_of`) | 21 M | 441 M |

At depth 4 these are the tuned values of the default run; elsewhere they are extrapolation. A wider sum of inputs wants
smaller steps of those inputs' weights, by the root for embeddings and gains. The best batch grows about as the
0.33rd power of the compute (Bi et al., "DeepSeek LLM", 2024), and compute as the sixth power of depth: parameters
as its cube, tokens with them. 20 tokens a parameter are Hoffmann et al., 2022.
"""

import math
from dataclasses import replace

from ..ranges import check_ranges
from .config import Config, OptimizerConfig

DEPTH, WIDTH, BATCH_TOKENS = 4, 128, 2048  # of the default run, for which all was tuned
RATES = {  # of it, by stage: AdamW's, Muon's
    "pretrain": (1e-2, 2e-2),
    "sft": (2e-3, 6e-3),
    "know": (2e-3, 2e-2),
    "search": (1e-3, 4e-3),
    "rl": (3e-4, 2e-2),
    "reward": (2e-3, 2e-2),
    "rlhf": (7e-4, 2e-2),
}


def resolve(config: Config) -> Config:
    """The settings with everything filled in that depth decides; what is given stays.

    Raises UserError for a number out of its range.
    """
    check_ranges(config)
    depth = config.model.depth
    width = config.model.hidden_size or 32 * depth
    stages = {}
    for name, rates in RATES.items():
        stage = getattr(config, name)
        stages[name] = replace(stage, optimizer=_with_rates(stage.optimizer, *rates, width))
    tokens = config.pretrain.batch_tokens or max(config.pretrain.context, batch_tokens(depth))
    stages["pretrain"] = replace(stages["pretrain"], batch_tokens=tokens)
    return replace(config, **stages)


def batch_tokens(depth: int) -> int:
    """Tokens of a pre-training step."""
    return int(BATCH_TOKENS * 2.0 ** round(2 * math.log2(depth / DEPTH)))


def _with_rates(optimizer: OptimizerConfig, lr: float, muon_lr: float, width: int) -> OptimizerConfig:
    scaled = float(f"{lr * math.sqrt(WIDTH / width):.3g}")
    return replace(optimizer, lr=optimizer.lr or scaled, muon_lr=optimizer.muon_lr or muon_lr)
