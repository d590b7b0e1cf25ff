"""From a traced graph to latents, rows and layout (mathematics.md, section 1)."""
