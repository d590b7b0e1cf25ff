"""Files of a pursuit network: weights, options, and the identity of the network."""
