"""The global solver where no derivative is recorded: elementwise work in place."""
