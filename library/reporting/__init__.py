"""What a run tells: log, curves, pages, findings."""
