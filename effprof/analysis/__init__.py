"""From records to numbers: one Analysis per run, and comparisons between runs."""
