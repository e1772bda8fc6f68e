"""From images and sizes to shipped models: look, plan, run, judge, tell."""
