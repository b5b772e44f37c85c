"""Rows in, rows out: a picture is encoded and decoded in bands, never whole."""
