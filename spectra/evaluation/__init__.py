"""Evaluation of models: perplexity, downstream tasks, memory and throughput."""
