"""`report.html`: one page about a run, from what lies in its folder and from nothing else."""
