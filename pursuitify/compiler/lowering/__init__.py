"""From rows to generated code."""
