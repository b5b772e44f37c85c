"""What `hires batch` does, from its options to the last row of its results."""
