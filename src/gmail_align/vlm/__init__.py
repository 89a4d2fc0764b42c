"""Multimodal language models: LLaVA on an aligned encoder."""
