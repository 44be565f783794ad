"""How good a model is, how fast, and what it takes: perplexity, tasks, memory, throughput."""
