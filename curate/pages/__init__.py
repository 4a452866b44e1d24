"""The report: one page, without network or script, on which a run can be judged."""
