"""Operators that replace quadratic self-attention, and the adapters that carry their weights."""
