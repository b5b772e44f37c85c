"""What `hires bench` does: its options, its kinds of measurement, its page."""
