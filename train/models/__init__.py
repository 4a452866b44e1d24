"""Models by name: open_clip's factory and small configurations of ours (`*.json`), and their weights by content."""
