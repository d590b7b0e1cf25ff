"""The structured dictionary, bound to parameters and to one batch.

``mathematics.md`` in this folder has the formulas that the package implements; docstrings cite its
sections, and equations of the paper by number.
"""
