"""The paper, reproduced on numbers: its tasks, its grid of methods, its tables and findings."""
