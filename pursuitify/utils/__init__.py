"""Small things the field has no library for."""
