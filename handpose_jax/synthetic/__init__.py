"""Hands made by the code itself, labelled by construction."""
