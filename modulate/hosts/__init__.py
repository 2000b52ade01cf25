"""Frozen multimodal LLMs: conventions, hooks, caches of their computation."""
