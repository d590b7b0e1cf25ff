"""Cross-layer equalization: weights are rescaled and the function stays."""
