"""Pivotal token search: single tokens on which the success of a response turns, and pairs of them.

Phi-4 technical report (Abdin et al. 2024, arXiv:2412.08905), section 4.3 and figure 4.
"""
