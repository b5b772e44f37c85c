"""Commands of `hires distill`, one a method."""
