"""Hands drawn without a renderer, for tests and smoke runs."""
