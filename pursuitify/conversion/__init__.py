"""From a model to a pursuit network, and the dry run that explains it."""
