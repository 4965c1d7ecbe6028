"""The stages before training: crawl, clean, tokenizer, shards. Each hands the run's settings and paths on."""
