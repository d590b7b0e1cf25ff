"""The structured dictionary, bound to parameters and to one batch."""
