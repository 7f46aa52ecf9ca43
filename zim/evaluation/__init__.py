"""The paper's evaluation: data sets, prompts, metrics, tables (paper section 5.1)."""
