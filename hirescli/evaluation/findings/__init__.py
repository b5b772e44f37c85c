"""The LinFusion paper's findings, small: which parts of operator and loss matter, and where.

Linear attentions with and without normalisation, causal and not, and with the terms of the loss
left out one by one, are distilled for a few hundred steps from the built-in teacher; each draws
at 1, 2 and 4 times the size it learned at, and what it draws is compared with held-out renders.
"""
