"""Measuring what people fear in large generated pictures, by bands, in bounded memory.

Four measures, each in a module of its own: `seams` (lines at regular distances), `repetition`
(patterns that come again), `drift` (colours against the base stage) and `sharpness` (detail in
each octave). `rows` reads a picture from top to bottom, once; `inspecting` hands its bands to all
four; `verdicts` says in plain words what the numbers mean; `figure` draws them.
"""
