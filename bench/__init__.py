"""Benches: one file an op or a path, each number a ratio against a peer in the same run or percent of a ceiling."""
