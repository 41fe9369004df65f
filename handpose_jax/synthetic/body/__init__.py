"""Hands as geometry: bones, poses, skin."""
