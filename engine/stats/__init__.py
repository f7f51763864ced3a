"""Statistics of captures: summaries, rankings, directions, confounds, comparisons."""
