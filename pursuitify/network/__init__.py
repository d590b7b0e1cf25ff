"""The pursuit network: one module, its checks, its diagnosis."""
