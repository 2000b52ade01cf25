"""Frozen multimodal LLMs: what the core knows of them, hooks on them, and caches of their own
computation.
"""
