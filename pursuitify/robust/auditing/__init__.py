"""The audit: protocols, red flags, records and reports."""
