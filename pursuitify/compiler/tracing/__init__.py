"""From a module to a functional torch.fx graph, or a refusal."""
