"""From numbers to findings: rules, the gain each predicts, trials that verify it, and what past trials taught."""
