"""From a traced graph to latents, rows and layout (MATH section 1)."""
