"""`report.html`: one page about a run, made from the files of its folder alone."""
