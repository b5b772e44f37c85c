"""Measuring what the program does; never imported by generation."""
