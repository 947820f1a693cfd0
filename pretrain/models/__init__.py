"""Encoders, prefix attention and the multimodal decoder."""
