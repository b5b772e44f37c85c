"""Models: cards, their registry, and loading."""
