"""Every setting of a run: one tree of dataclasses, from which flags and the TOML file follow.

    python -m pyengine.train --pretrain.steps 600          a flag is section.field
    [pretrain]                                             and so is the TOML file of --config
    steps = 600

Precedence: flags, over `--config FILE`, over the run's stored config.toml (with `--resume`), over the
defaults below, which are the default run on the closed world. The resolved tree is written to the run's
config.toml.
Inputs are settings like any other: a site, folder, WARC or JSONL file takes the closed world's place.
"""

import difflib
import re
import sys
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import torch

from ..errors import UserError
from ..files import atomic_write
from ..model import ModelConfig
from ..ranges import AT_LEAST_0, AT_LEAST_1, POSITIVE, SHARE, Range
from ..text import SPECIAL_TOKENS
from ..world.config import SEED, WorldConfig
from ..world.problems import GRADES
from ..world.wordings import IN_CHAT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RULES = ("adamw", "muon")  # of updating parameters


@dataclass(frozen=True)
class WebConfig:
    """What is crawled or read, and how it is cleaned."""

    source: str = "world"
    """"world", the URL of a site, a folder of pages or text, a WARC, or a JSONL file of documents"""
    max_pages: Annotated[int, AT_LEAST_1] = 20_000
    """pages fetched at most"""
    contact: str = ""
    """URL or e-mail address for the owners of the sites crawled, part of the User-Agent"""
    delay: Annotated[float, AT_LEAST_0] = 1.0
    """seconds between two requests to a host; robots.txt may ask for more"""
    allow_private: bool = False
    """crawl a site on this machine or a private network"""
    heldout: Annotated[float, Range(gt=0, lt=1)] = 0.05
    """share of the documents kept from training, for validation"""


@dataclass(frozen=True)
class TokenizerConfig:
    """The byte-level BPE vocabulary."""

    vocab_size: Annotated[
        int, Range(ge=256 + len(SPECIAL_TOKENS), why="the bytes and the special tokens")
    ] = 2048
    """entries, with the 256 bytes and the special tokens"""


@dataclass(frozen=True)
class ModelSettings:
    """Size of the model: depth decides the rest unless a field says otherwise."""

    depth: Annotated[int, AT_LEAST_1] = 4
    """layers; hidden size, heads, feed-forward size, learning rates, batch size and tokens follow from it"""
    hidden_size: Annotated[int | None, AT_LEAST_1] = None
    """channels; default 32 x depth"""
    head_dim: Annotated[int | None, AT_LEAST_1] = None
    """channels of a head; default 32 for small models, 64 from 512 channels on, 128 from 2048 on"""
    kv_heads: Annotated[int | None, AT_LEAST_1] = None
    """key/value heads; default as many as query heads"""
    intermediate_size: Annotated[int | None, AT_LEAST_1] = None
    """feed-forward channels; default 8/3 of the hidden size, in multiples of 8"""
    qk_norm: bool = True
    """normalise queries and keys (the Qwen3 family; without it the Llama family)"""
    tie_embeddings: bool = True
    """one matrix for the input embedding and the output layer"""
    max_positions: Annotated[int, AT_LEAST_1] = 1024
    """longest sequence"""
    dtype: str = "bfloat16"
    """type of the weights in forward and backward: float32 or bfloat16 (the optimiser keeps float32)"""


@dataclass(frozen=True)
class OptimizerConfig:
    """Update rule and learning-rate schedule of one training stage."""

    rule: str = "muon"
    """"adamw" for all parameters, or "muon" for the matrices inside the layers and adamw for the rest"""
    lr: Annotated[float, AT_LEAST_0] = 3e-3
    """peak learning rate of adamw; 0: as model.depth decides for the stage"""
    muon_lr: Annotated[float, AT_LEAST_0] = 0.02
    """peak learning rate of muon; 0: as model.depth decides for the stage"""
    beta1: Annotated[float, Range(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Range(ge=0, lt=1)] = 0.95
    eps: Annotated[float, POSITIVE] = 1e-5
    """of adamw; at 1e-8 a row of the embedding that no token names takes full steps from a gradient near nothing"""
    weight_decay: Annotated[float, AT_LEAST_0] = 0.0
    """decoupled, on matrices only"""
    clip: Annotated[float, POSITIVE] = 1.0
    """largest global norm of the gradient"""
    outlier: Annotated[float, AT_LEAST_1] = 10.0
    """a step whose gradient norm is this many times the median of the last 32 is skipped"""
    warmup: Annotated[float, SHARE] = 0.02
    """share of the steps in which the rate rises from 0"""
    warmdown: Annotated[float, SHARE] = 0.4
    """share of the steps, at the end, in which it falls"""
    floor: Annotated[float, SHARE] = 0.05
    """where it ends, as a share of the peak"""


def _by_depth(**given: Any) -> OptimizerConfig:
    """An optimiser whose rates follow from depth."""
    return OptimizerConfig(lr=0.0, muon_lr=0.0, **given)


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-training: predict the next token of the crawl."""

    epochs: Annotated[float, POSITIVE] = 6.0
    """passes over the shards, at most; decides the number of steps"""
    tokens_per_parameter: Annotated[float, POSITIVE] = 20.0
    """tokens read for each parameter of the model, at most"""
    steps: Annotated[int | None, AT_LEAST_1] = None
    """number of steps, instead of both"""
    batch_tokens: Annotated[int, AT_LEAST_0] = 0
    """tokens of one step; 0: as model.depth decides"""
    context: Annotated[int, AT_LEAST_1] = 256
    """longest piece of a document seen at once"""
    evaluations: Annotated[int, AT_LEAST_1] = 10
    """how often, in all, validation is measured and samples are drawn (a checkpoint comes before each)"""
    validation_tokens: Annotated[int, AT_LEAST_1] = 16_384
    """tokens of the validation split read at each of them; after the last step it is read whole"""
    ngram_tokens: Annotated[int, AT_LEAST_1] = 50_000_000
    """training tokens that the 5-gram counts, at most: it is made in memory, with a dozen numbers for each"""
    optimizer: OptimizerConfig = field(default_factory=_by_depth)


@dataclass(frozen=True)
class DemoConfig:
    """The base model shown as it is: recitation, dreaming, disagreement."""

    samples: Annotated[int, AT_LEAST_1] = 4
    """samples of each prompt"""


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning on conversations."""

    conversations: Path | None = None
    """JSONL of {"messages": [...]} in place of the world's conversations; where another source is read, those of
    the world that tell its facts are left out"""
    count: Annotated[int, AT_LEAST_1] = 18_000
    """conversations taken from the world"""
    rehearsal: Annotated[float, AT_LEAST_0] = 0.4
    """tokens of the pre-training documents trained along, as a share of the conversations' tokens"""
    epochs: Annotated[float, POSITIVE] = 1.0
    batch_tokens: Annotated[int, AT_LEAST_1] = 2048
    evaluations: Annotated[int, AT_LEAST_1] = 4
    """how often, in all, the held-out loss and the problems solved are measured"""
    optimizer: OptimizerConfig = field(default_factory=lambda: _by_depth(warmdown=0.8))


@dataclass(frozen=True)
class KnowConfig:
    """Probing what the model knows, and teaching "I don't know" where it does not."""

    facts: Path | None = None
    """JSONL of {"question", "answer", "passage"} in place of the world's facts; where another source than the
    world is read, and no facts are given, the model goes through `know` and `search` unchanged"""
    wordings: Annotated[int, Range(ge=1, le=IN_CHAT.stop - IN_CHAT.start)] = 2
    """how many wordings of each of the world's questions are asked"""
    passing: Annotated[int, AT_LEAST_0] = 1000
    """of the world's people of whom a page or two tell, how many are asked about too"""
    samples: Annotated[int, AT_LEAST_1] = 4
    """how often each question is asked"""
    temperature: Annotated[float, AT_LEAST_0] = 0.8
    known: Annotated[float, SHARE] = 0.75
    """a question is known if at least this share of its samples is right"""
    unknown: Annotated[float, SHARE] = 0.25
    """and unknown if at most this share is"""
    balance: Annotated[float, AT_LEAST_0] = 1.0
    """unknown questions trained for each known one, at the most"""
    replay: Annotated[int, AT_LEAST_0] = 1500
    """conversations of the SFT stage trained along"""
    rehearsal: Annotated[float, AT_LEAST_0] = 0.3
    """tokens of the pre-training documents trained along, as a share of the conversations' tokens"""
    epochs: Annotated[float, POSITIVE] = 2.0
    batch_tokens: Annotated[int, AT_LEAST_1] = 2048
    evaluations: Annotated[int, AT_LEAST_1] = 1
    optimizer: OptimizerConfig = field(default_factory=lambda: _by_depth(rule="adamw", warmdown=0.8))


@dataclass(frozen=True)
class SearchConfig:
    """Teaching the model to look things up."""

    replay: Annotated[int, AT_LEAST_0] = 1500
    """conversations of the SFT stage trained along"""
    rehearsal: Annotated[float, AT_LEAST_0] = 0.3
    """tokens of the pre-training documents trained along, as a share of the conversations' tokens"""
    epochs: Annotated[float, POSITIVE] = 2.0
    batch_tokens: Annotated[int, AT_LEAST_1] = 2048
    evaluations: Annotated[int, AT_LEAST_1] = 1
    optimizer: OptimizerConfig = field(default_factory=lambda: _by_depth(warmdown=0.8))


@dataclass(frozen=True)
class RlConfig:
    """Reinforcement learning on problems with answers."""

    problems: Path | None = None
    """JSONL of {"problem", "answer"} in place of the world's problems"""
    grades: Annotated[tuple[int, ...], Range(ge=min(GRADES), le=max(GRADES))] = (1, 2, 3, 4, 5)
    """grades of the world's problems"""
    steps: Annotated[int, AT_LEAST_1] = 40
    problems_per_step: Annotated[int, AT_LEAST_1] = 32
    group: Annotated[int, Range(ge=2, why="replies are judged against each other")] = 8
    """replies to each problem"""
    max_tokens: Annotated[int, AT_LEAST_1] = 96
    """tokens of a reply at most; one that is cut off earns nothing"""
    shortness: Annotated[float, SHARE] = 0.3
    """how much of the reward a right reply loses by its length, at the most"""
    kl: Annotated[float, AT_LEAST_0] = 0.01
    """weight of staying near the model before"""
    replay: Annotated[int, AT_LEAST_0] = 96
    """questions of the stages before, whose answers by the model before are trained along in each step"""
    exam: Annotated[int, AT_LEAST_1] = 1000
    """held-out problems measured before and after"""
    evaluations: Annotated[int, AT_LEAST_1] = 6
    controls: bool = True
    """run the format-only control and the imitation ceiling too"""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: _by_depth(rule="adamw", warmup=0.05, warmdown=0.3)
    )


@dataclass(frozen=True)
class RewardConfig:
    """A reward model, from rankings of answers."""

    demonstrations: Annotated[int, AT_LEAST_1] = 600
    """portraits, written by people of the world, that are shown before any are ranked"""
    epochs_shown: Annotated[float, POSITIVE] = 2.0
    """passes over them and as many conversations of the SFT stage"""
    requests: Annotated[int, AT_LEAST_1] = 400
    """requests for a portrait whose answers are ranked to train on; few, so that the score has its faults"""
    held_out: Annotated[int, AT_LEAST_1] = 300
    """requests about other people, whose ranked answers measure the accuracy"""
    answers: Annotated[int, Range(ge=2, why="a ranking compares them")] = 4
    """answers to each request, ranked together"""
    noise: Annotated[float, POSITIVE] = 0.15
    """of the raters: an answer worth this much more is put before another with odds of e to 1"""
    epochs: Annotated[float, POSITIVE] = 2.0
    rankings_per_step: Annotated[int, AT_LEAST_1] = 16
    evaluations: Annotated[int, AT_LEAST_0] = 4
    """how often, in all, the accuracy on held-out rankings is measured"""
    optimizer: OptimizerConfig = field(default_factory=lambda: _by_depth(rule="adamw", warmdown=0.8))


@dataclass(frozen=True)
class RlhfConfig:
    """Reinforcement learning against the reward model."""

    rankings: Path | None = None
    """JSONL of {"messages", "answers", "ranks"}, people's rankings, in place of the world's; the model of the stage
    rl starts, and what is good is known by the reward model alone"""
    steps: Annotated[int, AT_LEAST_1] = 60
    """with those that, the budget spent, only show what comes after"""
    requests_per_step: Annotated[int, AT_LEAST_1] = 16
    group: Annotated[int, Range(ge=2, why="answers are judged against each other")] = 8
    """answers to each request"""
    max_tokens: Annotated[int, AT_LEAST_1] = 96
    """tokens of an answer at most"""
    kl: Annotated[float, AT_LEAST_0] = 0.02
    """weight of staying near the model at the start, until the budget is spent"""
    budget: Annotated[float, POSITIVE] = 6.0
    """nats that an answer's distribution may be away from the start's"""
    push: Annotated[float, POSITIVE] = 2.0
    """how many times the learning rate takes it on once the budget is spent"""
    replay: Annotated[int, AT_LEAST_0] = 16
    """questions of the stages before, whose answers by the model at the start are trained along in each step"""
    evaluations: Annotated[int, AT_LEAST_1] = 20
    """how often, in all, score, gold reward and distance are measured: the points of the curve"""
    examined: Annotated[int, AT_LEAST_1] = 150
    """held-out requests answered each time"""
    exam: Annotated[int, AT_LEAST_1] = 600
    """held-out requests answered at the start and by the model that is kept"""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: _by_depth(rule="adamw", warmup=0.15, warmdown=0.0)
    )


@dataclass(frozen=True)
class EvaluateConfig:
    """The final measurements."""


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    name: str = "default"
    """name of the run: everything is kept in runs/<name>"""
    seed: Annotated[int, SEED] = 1
    """seed of the world, the weights, the order of the data and every sample"""
    threads: Annotated[int, AT_LEAST_0] = 0
    """threads of the kernels; 0 takes every core"""
    device: str = "cpu"
    """where models are trained and asked: cpu, cuda or cuda:N; under torchrun "cuda" gives each process a GPU"""
    micro_tokens: Annotated[int, AT_LEAST_1] = 16_384
    """tokens that go forward and backward at once; where memory does not suffice, fewer"""
    shard: bool = False
    """under torchrun: no process but the first holds all weights, and none all gradients; for a large model"""
    checkpoint_minutes: Annotated[float, AT_LEAST_0] = 10.0
    """a training writes a checkpoint before each evaluation, and when the last one is this old"""
    world: WorldConfig = field(default_factory=WorldConfig)
    """the closed world; its seed is the run's unless world.seed is given"""
    web: WebConfig = field(default_factory=WebConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelSettings = field(default_factory=ModelSettings)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    demo: DemoConfig = field(default_factory=DemoConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    know: KnowConfig = field(default_factory=KnowConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    rl: RlConfig = field(default_factory=RlConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rlhf: RlhfConfig = field(default_factory=RlhfConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    @property
    def closed(self) -> bool:
        """Whether the closed world is what is read, so that all it tells is known."""
        return self.web.source == "world"

    def closed_world(self) -> WorldConfig:
        """The settings of the closed world: its own seed where one is given, else the run's."""
        return replace(self.world, seed=self.world.seed or self.seed)


def read_config(path: Path, over: Config | None = None) -> Config:
    """The settings of a TOML file, laid over `over` (default: the defaults).

    Raises UserError naming file and key for what is unknown or of the wrong type.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a configuration file: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    return _overlay(over or Config(), table, path, "")


def check(config: Config) -> None:
    """Raise UserError for what would fail only once the road had come to it: names, sizes that do not fit together,
    missing files.

    Of settings from dial.resolve(), which has checked the range of every number.
    """
    if not re.fullmatch(r"[\w][\w.-]*", config.name):
        raise UserError(
            f"--name {config.name!r} names a folder in runs/: letters, digits, dots and dashes only"
        )
    source = config.web.source
    if not config.closed and not source.startswith(("http://", "https://")) and not Path(source).exists():
        raise UserError(f'web.source = {source!r}: expected "world", a URL, or a file or folder that exists')
    for name in ("sft.conversations", "know.facts", "rl.problems", "rlhf.rankings"):
        section, key = name.split(".")
        path = getattr(getattr(config, section), key)
        if path is not None and not path.is_file():
            raise UserError(f"{name} = {path}: there is no such file; expected JSONL")
    config.world.check()
    model_config(config.model, config.tokenizer.vocab_size)
    dtype_of(config)
    if config.pretrain.context > config.model.max_positions:
        raise UserError(
            f"pretrain.context = {config.pretrain.context}: expected at most model.max_positions, "
            f"{config.model.max_positions}"
        )
    if config.know.unknown >= config.know.known:
        raise UserError(
            f"know.unknown = {config.know.unknown}: expected less than know.known, {config.know.known}"
        )
    for name in ("pretrain", "sft", "know", "search", "rl", "reward", "rlhf"):
        rule = getattr(config, name).optimizer.rule
        if rule not in RULES:
            raise UserError(f"{name}.optimizer.rule = {rule!r}: expected {' or '.join(RULES)}")


def model_config(settings: ModelSettings, vocab_size: int) -> ModelConfig:
    """The sizes that the settings ask for; UserError for those that do not fit together."""
    try:
        return ModelConfig.from_depth(
            settings.depth,
            vocab_size,
            settings.hidden_size,
            settings.head_dim,
            settings.kv_heads,
            settings.intermediate_size,
            qk_norm=settings.qk_norm,
            tie_embeddings=settings.tie_embeddings,
            max_position_embeddings=settings.max_positions,
        )
    except ValueError as error:
        raise UserError(f"model settings: {error}") from None


def dtype_of(config: Config) -> torch.dtype:
    """The type of the model's weights in training."""
    if config.model.dtype not in ("float32", "bfloat16"):
        raise UserError(f"model.dtype = {config.model.dtype!r}: expected float32 or bfloat16")
    return getattr(torch, config.model.dtype)


def write_config(path: Path, config: Config) -> None:
    """Write the whole tree as TOML, atomically; a missing key means None."""
    with atomic_write(path, "wb") as file:
        tomli_w.dump(as_table(config), file)


def as_table(node: Any) -> dict[str, Any]:
    """A dataclass tree as plain nested dicts without None, paths as text."""
    table: dict[str, Any] = {}
    for f in fields(node):
        value = getattr(node, f.name)
        if is_dataclass(value):
            table[f.name] = as_table(value)
        elif value is not None:
            table[f.name] = str(value) if isinstance(value, Path) else value
    return table


def _overlay(node: Any, table: dict[str, Any], path: Path, prefix: str) -> Any:
    hints = typing.get_type_hints(type(node))
    changes = {}
    for key, value in table.items():
        name = prefix + key
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"expected one of {', '.join(hints)}"
            raise UserError(f"{path}: unknown setting {name}; {hint}")
        old = getattr(node, key)
        if is_dataclass(old):
            if not isinstance(value, dict):
                raise UserError(f"{path}: {name} is a section; write [{name}] and its settings below it")
            changes[key] = _overlay(old, value, path, name + ".")
        else:
            changes[key] = _convert(hints[key], value, path, name)
    return replace(node, **changes)


def _convert(hint: Any, value: Any, path: Path, name: str) -> Any:
    """`value` as the type of its field; ints are taken for floats, text for paths, lists for tuples."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        origin = typing.get_origin(option)
        if option is float and type(value) in (int, float):
            return float(value)
        if option is Path and isinstance(value, str):
            return Path(value)
        if origin is tuple and isinstance(value, list):
            return tuple(_convert(typing.get_args(option)[0], item, path, name) for item in value)
        if isinstance(option, type) and type(value) is option:
            return value
    names = [o.__name__ if isinstance(o, type) else str(o) for o in options if o is not type(None)]
    raise UserError(f"{path}: {name} = {value!r} should be of type {' or '.join(names)}")
