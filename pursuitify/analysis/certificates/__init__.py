"""What coherence and the objective prove about a minimiser."""
