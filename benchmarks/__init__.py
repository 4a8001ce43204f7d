"""The budgets of the project as programs: each prints ratios of paired runs, none asserts."""
