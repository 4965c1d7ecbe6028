"""Data as the training loops see it: token shards, packed batches, conversations, rankings, problems, facts; and what
conversations are made from: prompts, a guideline."""

from .conversations import Conversation, PackedConversations, encode_conversations, read_conversations
from .facts import Fact, read_facts
from .guideline import Guideline, read_guideline
from .loader import Batch, PackedLoader
from .problems import Problem, number, read_problems
from .prompts import Prompt, read_prompts
from .rankings import Ranking, read_rankings, split_by_prompt
from .rows import Skipped
from .shards import ShardWriter, TokenShards, encode_files, write_shards

__all__ = [
    "Batch",
    "Conversation",
    "Fact",
    "Guideline",
    "PackedConversations",
    "PackedLoader",
    "Problem",
    "Prompt",
    "Ranking",
    "ShardWriter",
    "Skipped",
    "TokenShards",
    "encode_conversations",
    "encode_files",
    "number",
    "read_conversations",
    "read_facts",
    "read_guideline",
    "read_problems",
    "read_prompts",
    "read_rankings",
    "split_by_prompt",
    "write_shards",
]
