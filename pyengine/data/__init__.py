"""Data as the training loops see it: token shards, packed batches, conversations, problems, facts."""

from .conversations import Conversation, PackedConversations, encode_conversations, read_conversations
from .facts import Fact, read_facts
from .loader import Batch, PackedLoader
from .problems import Problem, number, read_problems
from .rows import Skipped
from .shards import ShardWriter, TokenShards, encode_files, write_shards

__all__ = [
    "Batch",
    "Conversation",
    "Fact",
    "PackedConversations",
    "PackedLoader",
    "Problem",
    "ShardWriter",
    "Skipped",
    "TokenShards",
    "encode_conversations",
    "encode_files",
    "number",
    "read_conversations",
    "read_facts",
    "read_problems",
    "write_shards",
]
